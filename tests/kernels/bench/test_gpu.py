"""The GPU kernels' bench, run on torch's CPU device: its times mean nothing there, its figures and files do."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch")

from ternary_kernels.bench import gpu
from ternary_kernels.bench.shapes import MODELS


def test_every_figure_follows_from_the_samples(tmp_path, capsys):
    """Bandwidth against the copy's, speed against torch's bf16 product; the published kernel only beside Triton's."""
    target = tmp_path / "report.json"
    small = ["--device", "cpu", "--kernel", "torch", "--shape", "256x256", "--m", "1", "4", "--seconds", "0.1"]
    assert gpu.main([*small, "--json", str(target)]) == 0
    report = json.loads(target.read_text())
    assert {(row["m"], row["kernel"]) for row in report["rows"]} == {
        (1, "torch"), (1, gpu.PEER), (4, gpu.PEER)
    }  # fmt: skip
    by_kernel = {row["kernel"]: row for row in report["rows"] if row["m"] == 1}
    own, peer = (sorted(by_kernel[name]["samples_s"]) for name in ("torch", gpu.PEER))
    assert len(own) >= 6
    assert by_kernel["torch"]["weight_bytes"] == 256 * 256 // 4
    assert by_kernel["torch"]["times_bf16"] == pytest.approx(middle(peer) / middle(own))
    assert by_kernel["torch"]["times_w2a8"] is None
    assert by_kernel["torch"]["of_copy_bandwidth"] == pytest.approx(256 * 64 / middle(own) / report["copy_bytes_per_s"])
    assert "256 x 256" in capsys.readouterr().out


def middle(ordered: list[float]) -> float:
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def test_a_model_is_multiplied_as_a_gpu_fuses_it():
    shapes = gpu.fused_shapes(MODELS["bitnet-b1.58-2B-4T"])
    assert [(shape.sites, shape.n_out, shape.k_in) for shape in shapes] == [
        (("q", "k", "v"), 3840, 2560),
        (("o",), 2560, 2560),
        (("gate", "up"), 13824, 2560),
        (("down",), 2560, 6912),
    ]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (["--shape", "256"], "argument --shape: expected rows x columns like 6912x2560, got '256'"),
        (["--m", "0"], "argument --m: expected a number of at least 1, got '0'"),
        (["--device", "cpu", "--kernel", "torch", "--shape", "4x100"], "k_in"),
    ],
)
def test_what_cannot_be_timed_is_refused_in_one_sentence(wrong, sentence, capsys):
    with pytest.raises(SystemExit) as stopped:
        gpu.main(wrong)
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert sentence in said
    assert len(said.strip().splitlines()) == 1
