"""The device of an accuracy run: what it is part of, where it is written, and images that are decoded once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("matplotlib", reason="the plots need the extra [plot]")

from benchmarks.accuracy import __main__ as command_line
from benchmarks.accuracy import pool, report
from benchmarks.accuracy.collect import collect, read_results
from benchmarks.accuracy.data import load_data
from benchmarks.accuracy.grid import RunConfig, load_grid
from benchmarks.accuracy.predictions import predictions_figure
from benchmarks.accuracy.readme import RESULTS, ROOT, results_block
from benchmarks.accuracy.run import execute
from tests.examples.conftest import camvid_folder  # noqa: F401 (a fixture)
from tests.test_accuracy_benchmark import _fake, results, tiny  # noqa: F401 (two fixtures)


@pytest.mark.parametrize("name", ["compare", "long"])
def test_runs_on_the_cpu_keep_the_names_of_the_committed_results(name):
    committed = json.loads((ROOT / RESULTS / f"{name}.json").read_text())["runs"]
    configs = [config for _, config in load_grid(name).runs()]
    assert {run["run"] for run in committed} == {config.key for config in configs}
    assert not any("device" in config.as_dict() for config in configs)


def test_another_device_is_another_run():
    on_cpu, on_gpu = (dict(load_grid("long", device).runs()) for device in ("cpu", "cuda"))
    for label, config in on_gpu.items():
        assert replace(config, device="cpu") == on_cpu[label]
        assert config.key != on_cpu[label].key
        assert RunConfig(**json.loads(json.dumps(config.as_dict()))) == config


def test_images_are_decoded_once(camvid_folder):  # noqa: F811
    decoded = []
    for stem in ("a0", "a1", "a2"):
        image = np.array(Image.open(camvid_folder / "train" / "images" / f"{stem}.jpg").convert("RGB"))
        label = np.array(Image.open(camvid_folder / "train" / "labels" / f"{stem}.png"))
        decoded.append((torch.from_numpy(image).permute(2, 0, 1) / 255, torch.from_numpy(label).long()))
    config = {"kind": "camvid", "train": "train_alt", "tests": ["val_alt", "val"]}
    data = load_data(config, camvid_folder, camvid_folder)
    shutil.rmtree(camvid_folder)  # nobody reads a file any more
    assert len(data.train) == len(decoded)
    for i, (image, label) in enumerate(decoded):
        assert torch.equal(data.train[i][0], image)
        assert torch.equal(data.train[i][1], label)
    elsewhere = data.to(torch.device("meta"))
    for images in (elsewhere.train, *elsewhere.tests.values()):
        assert (images.images.dtype, images.labels.dtype) == (torch.uint8, torch.uint8)
        assert {part.device.type for part in images[0]} == {"meta"}
    assert elsewhere.pixel_counts.device.type == "cpu"


def test_sigterm_ends_the_runs_too(tiny, tmp_path, monkeypatch):  # noqa: F811
    started = []

    def sleep(*_: object) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        return started[-1]

    monkeypatch.setattr(pool, "_start", sleep)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        pool.run_all([tiny.runs()[0][1]], tmp_path / "runs", None, progress=False)
    assert started[0].returncode == -signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_gpu_that_is_not_there_is_told(tmp_path, camvid_folder, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    shared = ["--data", str(camvid_folder), "--runs", str(tmp_path / "runs"), "--device", "cuda"]
    assert command_line.main(["run", "camvid_gpu", *shared]) == 1
    assert "finds no CUDA device" in capsys.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_runs_on_a_gpu(tiny, tmp_path, camvid_folder):  # noqa: F811
    grid = replace(tiny, device="cuda", seeds=(0,))
    for _, config in grid.runs():
        metrics = execute(config, tmp_path / "runs", camvid_folder)
        assert metrics["device"]["name"] == torch.cuda.get_device_name()
    path = collect(grid, tmp_path / "runs", tmp_path / "out")
    assert read_results(path).device == torch.cuda.get_device_name()
    assert predictions_figure(grid, tmp_path / "runs", camvid_folder, images=1) is not None


def test_tables_say_where_the_runs_were_made(results):  # noqa: F811
    assert report._recipe(_fake(results)).endswith("flips; on a CPU.")
    path = results / "compare.json"
    content = json.loads(path.read_text())
    for run in content["runs"]:
        run["device"] = {"type": "cuda", "name": "NVIDIA H100", "tf32": {"matmul": False, "cudnn": True}}
    (results / "camvid_gpu.json").write_text(json.dumps(content))
    text = "on NVIDIA H100 (float32, TF32 in convolutions)"
    assert report._recipe(_fake(results, "camvid_gpu")).endswith(f"flips; {text}.")
    block = results_block(results, results)
    assert "EfficientNet-Lite0, on a CPU; IoU" in block
    assert text in block
    path.write_text(json.dumps(content))
    block = results_block(results, results / "nothing")
    assert "EfficientNet-Lite0, on NVIDIA H100 and a CPU; IoU" in block
    assert text not in block
