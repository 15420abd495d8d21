"""What is timed for what is asked for, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ternary_kernels.bench import cases
from ternary_kernels.bench.cases import HEAD_SITE, Runnable, UsageError, Wanted, expand, runnable
from ternary_kernels.bench.shapes import MODELS, Shape
from ternary_kernels.formats import get_format

RUNS = (
    Runnable("native", "I2_S", "avx2"),
    Runnable("native", "TQ2_0", "avx2"),
    Runnable("native", "F16", "avx2"),
    Runnable("numpy", "I2_S", None),
    Runnable("numpy", "TQ1_0", None),
    Runnable("numpy", "Q8_0", None),
    Runnable("numpy", "IQ2_S", None),
)
REASONS = {"amx": "amx needs amx_int8, which this CPU lacks"}
PEERS = ("TQ2_0", "TQ1_0", "F16", "Q8_0")
SQUARE, HEAD = Shape(("q", "o"), 512, 768), Shape(HEAD_SITE, 100_000, 2560)


def wanted(**changes):
    base = Wanted((SQUARE,), (HEAD,), (), None, None, (1, 4), (1, 2), (True, False))
    return base._replace(**changes)


def products(cases):
    return {(case.kernel, case.format, case.sites) for case in cases}


def test_by_default_layers_get_all_ternary_formats_the_head_the_others_and_the_peer_joins_in_both():
    cases, notes = expand(wanted(), RUNS, REASONS, PEERS)
    assert products(cases) == {
        ("native", "I2_S", SQUARE.sites),
        ("native", "TQ2_0", SQUARE.sites),
        ("numpy", "TQ1_0", SQUARE.sites),
        ("numpy", "IQ2_S", SQUARE.sites),
        ("ggml", "TQ2_0", SQUARE.sites),
        ("ggml", "TQ1_0", SQUARE.sites),
        ("native", "F16", HEAD.sites),
        ("numpy", "Q8_0", HEAD.sites),
        ("ggml", "F16", HEAD.sites),
        ("ggml", "Q8_0", HEAD.sites),
    }
    assert notes == []


def test_every_product_comes_with_every_m_thread_count_and_kind_of_memory_few_tokens_first():
    cases, _ = expand(wanted(), RUNS, REASONS, PEERS)
    assert len(cases) == len(set(cases)) == 10 * 2 * 2 * 2
    assert [case.m for case in cases] == sorted(case.m for case in cases)


def test_a_case_says_which_instruction_set_its_kernel_uses():
    cases, _ = expand(wanted(), RUNS, REASONS, PEERS)
    assert {case.path for case in cases if case.kernel == "native"} == {"avx2"}
    assert {case.path for case in cases if case.kernel != "native"} == {None}


def test_kernels_that_are_named_are_timed_and_no_others_but_the_peer():
    cases, _ = expand(wanted(kernels=("numpy",)), RUNS, REASONS, PEERS)
    assert {case.kernel for case in cases} == {"numpy", "ggml"}
    assert ("numpy", "I2_S", SQUARE.sites) in products(cases)
    assert ("numpy", "F16", HEAD.sites) not in products(cases)


def test_a_ternary_format_that_is_named_goes_to_layers_beside_the_peers_fastest_one():
    cases, _ = expand(wanted(formats=("I2_S",)), RUNS, REASONS, PEERS)
    assert products(cases) == {("native", "I2_S", SQUARE.sites), ("ggml", "TQ2_0", SQUARE.sites)}


def test_a_shape_of_ones_own_takes_any_format_that_is_named_and_by_default_the_ternary_ones():
    alone = wanted(layers=(), heads=(), free=(Shape((), 64, 256),))
    cases, _ = expand(alone._replace(formats=("F16",)), RUNS, REASONS, PEERS)
    assert products(cases) == {("native", "F16", ()), ("ggml", "F16", ())}
    cases, _ = expand(alone, RUNS, REASONS, ())
    assert {case.format for case in cases} == {"I2_S", "TQ2_0", "TQ1_0", "IQ2_S"}


def test_a_head_is_sliced_to_64_mib_in_whichever_format_and_a_small_one_is_whole():
    small = Shape(HEAD_SITE, 1000, 2560)
    cases, _ = expand(wanted(heads=(HEAD, small)), RUNS, REASONS, PEERS)
    for case in cases:
        if case.sites == HEAD_SITE:
            size = get_format(case.format).size_bytes(case.n_out, case.k_in)
            assert size <= 64 << 20
            assert case.n_out == 1000 or size > 62 << 20
    assert {case.n_out for case in cases if case.sites == HEAD_SITE} > {1000}


def test_rows_so_long_that_few_fit_are_still_timed():
    cases, _ = expand(wanted(heads=(Shape(HEAD_SITE, 9000, 1 << 20),)), RUNS, REASONS, ())
    assert {case.n_out for case in cases if case.sites == HEAD_SITE} == {256}


def test_a_shape_that_a_format_cannot_hold_is_left_out_and_the_reason_is_noted_once():
    odd = Shape(("down",), 3200, 8640)
    cases, notes = expand(wanted(layers=(SQUARE, odd)), RUNS, REASONS, PEERS)
    assert ("down",) not in {case.sites for case in cases}
    assert "down 3200x8640 left out: I2_S needs k_in to be a multiple of 128, got 8640" in notes
    assert len(notes) == len(set(notes))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"formats": ("Q9",)}, "--format: unknown weight format 'Q9': expected one of "),
        ({"kernels": ("abacus",)}, "--kernel: expected one of native, numpy, amx, got 'abacus'"),
        ({"kernels": ("amx",)}, "--kernel amx: amx needs amx_int8, which this CPU lacks"),
        ({"formats": ("Q6_K",)}, "--format Q6_K: nothing to time, no shape or no kernel for it"),
        ({"formats": ("I2_S",), "layers": (Shape((), 8, 100),)},
         "--format I2_S: nothing to time, 8x100 left out: I2_S needs k_in to be a multiple of 128, got 100"),
        ({"layers": (Shape((), 8, 100),), "heads": ()},
         "nothing to time: 8x100 left out: I2_S needs k_in to be a multiple of 128, got 100"),
        ({"kernels": ("native",), "layers": (), "heads": (), "free": ()},
         "nothing to time: no kernel for any of these shapes"),
    ],
)  # fmt: skip
def test_what_cannot_be_timed_is_refused_in_a_sentence(changes, sentence):
    with pytest.raises(UsageError) as refusal:
        expand(wanted(**changes), RUNS, REASONS, ())
    assert str(refusal.value).startswith(sentence)
    assert "\n" not in str(refusal.value)


def test_kernels_and_the_reasons_of_the_others_come_from_the_registry(monkeypatch):
    def available(machine, flags):
        entry = SimpleNamespace
        return (
            entry(kernel="native", format="I2_S", path="avx2", reason=None),
            entry(kernel="native", format="TL9", path=None, reason="no kernel for it"),
            entry(kernel="amx", format="I2_S", path=None, reason="no tiles"),
        )

    monkeypatch.setattr(cases, "available", available)
    assert runnable() == ((Runnable("native", "I2_S", "avx2"),), {"amx": "no tiles"})


def test_numpys_kernels_always_run():
    runs, _ = runnable()
    assert {("numpy", "I2_S"), ("numpy", "F16")} <= {(run.kernel, run.format) for run in runs}


def test_every_preset_has_something_to_time():
    for model in MODELS.values():
        cases, _ = expand(wanted(layers=model.shapes, heads=(model.head,)), RUNS, REASONS, PEERS)
        assert {case.sites for case in cases} <= {*(shape.sites for shape in model.shapes), HEAD_SITE}
        assert len({case.sites for case in cases}) > 1
