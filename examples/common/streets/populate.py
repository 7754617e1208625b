"""What stands and moves in a street: positions of every object, as painting jobs keyed by depth."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import numpy as np

from .buildings import Building, across, paint_building, row
from .camera import Floats
from .furniture import Fence, Post, paint_fence, paint_post
from .painter import Painter
from .people import Person, paint_person
from .scene import Light, Side, Street, pick
from .vegetation import Hedge, Tree, paint_hedge, paint_tree, sample_tree
from .vehicles import Vehicle, paint_vehicle, sample_vehicle

Job = Callable[[Painter, Light], None]


@dataclass
class Scene:
    """Everything that stands on the ground: (depth, job) pairs and the shadows it throws."""

    jobs: list[tuple[float, Job]] = field(default_factory=list)
    shadows: list[Floats] = field(default_factory=list)
    strengths: list[float] = field(default_factory=list)

    def building(self, item: Building, light: Light) -> None:
        """Add a building; in the sun its shadow falls across the street."""
        self.jobs.append((item.far, lambda painter, light: paint_building(painter, item, light)))
        toward = -item.side * light.sun[0]
        if item.side and light.direct > 0.15 and toward < -0.15:
            reach = min(30.0, item.height * -toward / light.sun[1])
            slide = item.height * -light.sun[2] / light.sun[1]
            edge = item.face - item.side * reach
            corners = [
                (item.face, 0, item.start),
                (edge, 0, item.start + slide),
                (edge, 0, item.stop + slide),
            ]
            self._shadow(np.array([*corners, (item.face, 0, item.stop)]), min(0.6, light.direct))

    def tree(self, item: Tree) -> None:
        """Add a tree."""
        self.jobs.append((item.z, lambda painter, light: paint_tree(painter, item, light)))

    def hedge(self, item: Hedge) -> None:
        """Add a hedge."""
        self.jobs.append((item.stop, lambda painter, light: paint_hedge(painter, item, light)))

    def vehicle(self, item: Vehicle) -> None:
        """Add a vehicle, unless it would stand in the camera or in another vehicle."""
        if abs(item.x) < 2.2 and item.z < 7:
            return
        self.jobs.append((item.z, lambda painter, light: paint_vehicle(painter, item, light)))
        self._shadow(item.footprint(0.25), 0.3)
        self._shadow(item.footprint(-0.02), 0.6)

    def person(self, item: Person) -> None:
        """Add a pedestrian or a bicyclist."""
        self.jobs.append((item.z, lambda painter, light: paint_person(painter, item, light)))
        patch = [(-0.3, 0, -0.15), (-0.3, 0, 0.15), (0.4, 0, 0.15), (0.4, 0, -0.15)]
        self._shadow(np.array(patch) + np.array([item.x, 0, item.z]), 0.35)

    def post(self, item: Post) -> None:
        """Add something on a post."""
        self.jobs.append((item.z, lambda painter, light: paint_post(painter, item, light)))

    def fence(self, item: Fence) -> None:
        """Add a length of fence."""
        self.jobs.append((item.stop, lambda painter, light: paint_fence(painter, item, light)))

    def _shadow(self, polygon: Floats, strength: float) -> None:
        self.shadows.append(polygon)
        self.strengths.append(strength)


def populate(street: Street, light: Light, rng: Random) -> Scene:
    """Fill a street."""
    scene = Scene()
    for item in across(street.end, street.left.face, street.right.face, rng):
        scene.building(item, light)
    for _ in range(rng.randint(0, 6)):
        x = rng.uniform(street.left.face - 25, street.right.face + 25)
        scene.tree(sample_tree(x, street.end - rng.uniform(-15, 4), rng))
    for side in street.sides:
        _plots(scene, side, street, light, rng)
        _street_trees(scene, side, street, rng)
        _fences(scene, side, street, rng)
        _posts(scene, side, street, rng)
        _walkers(scene, side, street, rng)
    _traffic(scene, street, rng)
    _riders(scene, street, rng)
    return scene


def _plots(scene: Scene, side: Side, street: Street, light: Light, rng: Random) -> None:
    buildings, green = row(side, street.end, street.kind, rng)
    for item in buildings:
        scene.building(item, light)
    for start, stop in green:
        for _ in range(rng.randint(2, 4)):
            x = side.face + side.sign * rng.uniform(1.0, 9.0)
            scene.tree(sample_tree(x, rng.uniform(start, stop), rng))
        if rng.random() < 0.6 and stop > 2:
            height = rng.uniform(0.8, 2.2)
            scene.hedge(Hedge(side.face, start, stop, height, side.sign, rng.getrandbits(32)))


def _street_trees(scene: Scene, side: Side, street: Street, rng: Random) -> None:
    if rng.random() > {"town": 0.28, "open": 0.5, "green": 0.75}[street.kind]:
        return
    z, gap = rng.uniform(5, 20), rng.uniform(7, 18)
    while z < street.end:
        if not side.open_at(z, 2):
            scene.tree(sample_tree(side.pavement + side.sign * rng.uniform(-0.6, 1.5), z, rng))
        z += gap * rng.uniform(0.7, 1.4)


def _fences(scene: Scene, side: Side, street: Street, rng: Random) -> None:
    if rng.random() > 0.5:
        return
    kind = pick(rng, railing=0.55, boards=0.15, wall=0.3)
    x = side.kerb + side.sign * 0.3 if kind == "railing" and rng.random() < 0.5 else side.pavement
    z = rng.uniform(0, 25)
    stop = min(z + rng.uniform(6, 40), street.end)
    seed = rng.getrandbits(32)
    while z < stop:
        if not side.open_at(z + 2, 2):
            scene.fence(Fence(x, z, z + 4, kind, seed))
        z += 4


def _posts(scene: Scene, side: Side, street: Street, rng: Random) -> None:
    def along(gap: float, first: float, kind: str, offset: float) -> None:
        z = first
        while z < min(street.end, 65):
            if not side.open_at(z, 0.5):
                scene.post(Post(side.kerb + side.sign * offset, z, kind, side.sign, rng.getrandbits(32)))
            z += gap * rng.uniform(0.6, 1.5)

    along(rng.uniform(18, 40), rng.uniform(6, 25), "lamp", rng.uniform(0.4, 0.8))
    along(rng.uniform(12, 45), rng.uniform(5, 30), "sign", 0.5)
    if rng.random() < 0.5:
        along(rng.uniform(12, 40), rng.uniform(6, 25), "board", rng.uniform(0.8, 1.6))
    if rng.random() < 0.3:
        z = rng.uniform(7, 35)
        for step in range(rng.randint(1, 3)):
            x = side.kerb + side.sign * rng.uniform(0.3, 0.9)
            scene.post(Post(x, z + step * rng.uniform(3, 9), "signal", side.sign, rng.getrandbits(32)))
    if rng.random() < 0.25:
        along(rng.uniform(1.6, 3), rng.uniform(4, 30), "bollard", 0.4)
    if rng.random() < 0.6:
        along(rng.uniform(8, 30), rng.uniform(4, 20), "bin", rng.uniform(0.5, 1.5))
    if rng.random() < 0.5:
        along(rng.uniform(15, 40), rng.uniform(9, 30), "shelter", abs(side.pavement - side.kerb) + 0.3)


def _walkers(scene: Scene, side: Side, street: Street, rng: Random) -> None:
    for _ in range(rng.choice((0, 0, 0, 1, 2, 3, 4))):
        z, x = 5 + 45 * rng.random() ** 1.3, rng.uniform(side.kerb, side.pavement)
        if rng.random() < 0.08:
            x = rng.uniform(street.left.kerb, street.right.kerb)
        for _ in range(rng.choice((1, 1, 2, 2, 3))):
            person = Person(x, z, False, False, rng.getrandbits(32))
            scene.person(person)
            x, z = x + rng.uniform(0.5, 0.9), z + rng.uniform(-0.8, 0.8)


def _riders(scene: Scene, street: Street, rng: Random) -> None:
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        z = 6 + 32 * rng.random() ** 1.2
        x = (
            street.left.kerb + rng.uniform(0.4, 1.2)
            if rng.random() < 0.65
            else street.right.kerb - rng.uniform(0.4, 1)
        )
        scene.person(Person(x, z, True, rng.random() < 0.3, rng.getrandbits(32)))


def _traffic(scene: Scene, street: Street, rng: Random) -> None:
    left, right = street.left.kerb, street.right.kerb
    for side, heading in ((street.left, 0.0), (street.right, math.pi)):
        parking = rng.random() < {"town": 0.6, "open": 0.45, "green": 0.2}[street.kind]
        if not parking or abs(side.kerb) < 2.9:
            continue
        z = rng.uniform(3, 25)
        while z < min(street.end - 4, 80):
            turned = heading if rng.random() < 0.8 else math.pi - heading
            if not side.open_at(z, 2.5):
                scene.vehicle(sample_vehicle(side.kerb - side.sign * rng.uniform(0.95, 1.1), z, turned, rng))
            z += rng.choice((5.0, 5.6, 6.5, 14.0))
    z = rng.uniform(8, 24)
    while rng.random() < 0.62 and z < street.end:
        scene.vehicle(sample_vehicle(rng.uniform(-0.4, 0.3), z, 0.0, rng))
        z += rng.uniform(7, 25)
    z = rng.uniform(6, 35)
    while rng.random() < 0.65 and z < street.end:
        lane = max(2.6, min(right - 1.3, 3.1)) + rng.uniform(-0.2, 0.3)
        scene.vehicle(sample_vehicle(lane, z, math.pi, rng))
        z += rng.uniform(7, 25)
    if street.kind == "open" and rng.random() < 0.6:
        for _ in range(rng.randint(1, 4)):
            x, heading = rng.uniform(left - 4, right + 12), rng.uniform(0, 2 * math.pi)
            scene.vehicle(sample_vehicle(x, rng.uniform(15, 40), heading, rng))
