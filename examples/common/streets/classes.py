"""CamVid's 11 classes, in the index order of its usual label files."""

CLASSES: tuple[str, ...] = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign_symbol",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
)
IGNORE_INDEX = 255
SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST = range(len(CLASSES))
THINGS: tuple[int, ...] = (CAR, PEDESTRIAN, BICYCLIST)  # what is counted; a bicycle is its rider's
