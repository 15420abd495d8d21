"""The page: what it must say, of every kind of result, and that it stands alone."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import pytest
from msgspec.structs import replace

from autotune.records import Check, Measured, Origin, Result, Study
from autotune.report.page import render
from tests.report.results import confirm, mixed, replayed

MODEL = "bitnet-b1.58-2B-4T"
SVG = re.compile(r"<svg .*?</svg>", re.DOTALL)
VOID = {"meta", "link", "br", "hr", "img", "input"}


def text_of(page: str) -> str:
    """What a reader sees, on one line, with ordinary spaces."""
    without = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    words = html.unescape(re.sub(r"<[^>]+>", " ", without)).replace("\N{NO-BREAK SPACE}", " ")
    return re.sub(r"\s+", " ", words)


class Balance(HTMLParser):
    """Fails where an element is closed that isn't open, and keeps what is left open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remember it."""
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Shapes of a drawing close themselves."""

    def handle_endtag(self, tag: str) -> None:
        """Only the last one that was opened may be closed."""
        assert self.open
        assert self.open.pop() == tag


@pytest.fixture(params=["predicted", "confirmed", "hybrid", "two_gpus"])
def result(request: pytest.FixtureRequest) -> Result:
    """Any of them."""
    found: Result = request.getfixturevalue(request.param)
    return found


def test_the_page_stands_alone(result: Result) -> None:
    """Nothing is fetched and nothing runs: no script, no address, no file."""
    page = render(result, MODEL)
    assert page.startswith("<!DOCTYPE html>")
    assert "<script" not in page
    addresses = set(re.findall(r"https?://[^\s\"'<)]+", page))
    assert addresses <= {"http://www.w3.org/2000/svg"}
    assert set(re.findall(r"(?:src|href)=\"([^\"]*)\"", page)) <= {"data:,"}
    assert "url(" not in page
    assert "@import" not in page


def test_the_page_is_well_formed(result: Result) -> None:
    """Every element is closed in order, every drawing is XML."""
    page = render(result, MODEL)
    balance = Balance()
    balance.feed(page)
    balance.close()
    assert balance.open == []
    assert len([ET.fromstring(drawing) for drawing in SVG.findall(page)]) >= 6


def test_every_chart_has_words_and_numbers_beside_it(result: Result) -> None:
    """A label for who can't see it, a caption, and the table of what is drawn."""
    page = render(result, MODEL)
    for drawing in SVG.findall(page):
        root = ET.fromstring(drawing)
        assert root.get("role") == "img"
        assert len(root.get("aria-label") or "") > 20
    figures = re.findall(r"<figure>.*?</figure>", page, flags=re.DOTALL)
    assert len(figures) == len(SVG.findall(page))
    for figure in figures:
        assert "<details>" in figure
        assert re.search(r"<figcaption>\S", figure)
        assert len(re.findall(r"<tr>", figure)) >= 2


def test_the_page_has_the_decision_and_its_reasons(result: Result) -> None:
    """All of them, word by word, and every warning."""
    text = text_of(render(result, MODEL))
    decision = result.decision
    for words in (result.model.name, *decision.reasons, decision.bound_by, *result.warnings, *result.host.unknown):
        assert re.sub(r"\s+", " ", words) in text
    assert result.host.versions.kernels in text
    assert result.created_at in text


def test_a_result_that_was_not_run_says_so(predicted: Result) -> None:
    """Its figures are predictions with their band."""
    text = text_of(render(predicted, MODEL))
    assert "measured on its host, predicted, not run" in text
    assert "Output, predicted" in text
    assert "; not run" in text
    assert "No configuration was run" in text
    assert " assumed " in text
    assert " assumed " not in text_of(render(replace(predicted, model=replace(predicted.model, notes=())), MODEL))
    assert "Trials" not in text
    assert "Corrected by runs" not in text


def test_a_result_that_was_run_shows_what_was_measured(confirmed: Result) -> None:
    """Beside the prediction, with trials, corrections and the memory used."""
    text = text_of(render(confirmed, MODEL))
    assert "chosen by running it" in text
    assert "Output, measured" in text
    for word in ("Trials", "Corrected by runs", "pruned", "infeasible", "the process died", "used at the peak"):
        assert word in text
    assert confirmed.confirmation is not None
    assert f"× {confirmed.confirmation.corrections[0].factor:.3f}" in text


def test_a_search_that_tried_nothing_has_no_chart(confirmed: Result) -> None:
    """As where the engine could not start."""
    assert confirmed.confirmation is not None
    failed = replace(confirmed.confirmation, trials=(), chosen=None, stopped="failed")
    page = render(replace(confirmed, confirmation=failed), MODEL)
    assert "<h3>Trials</h3>" not in page
    assert "none could be run" in text_of(page)


def test_the_best_trial_that_was_not_chosen_is_explained(confirmed: Result) -> None:
    """It is no better beyond the noise, or it would have been."""
    assert confirmed.confirmation is not None
    chosen = confirmed.confirmation.trials[1]
    assert chosen.measured is not None
    faster = replace(chosen.measured, tokens_per_s=chosen.measured.tokens_per_s * 1.001)
    last = replace(chosen, configuration=replace(chosen.configuration, prefill_chunk=32), measured=faster)
    changed = replace(confirmed.confirmation, trials=(*confirmed.confirmation.trials, last))
    text = text_of(render(replace(confirmed, confirmation=changed), MODEL))
    assert "Trial 6 is no better than the chosen one beyond the noise." in text


def test_an_imported_result_says_where_it_was_measured(predicted: Result) -> None:
    """With the hardware class, and what a short run here found."""
    figures = Measured(tokens_per_s=20.0, tpot_s=0.05, ttft_s=0.5, relative_interval=0.01)
    check = Check("2026-02-03T04:05:06+00:00", 3.0, figures, figures, 0.05, holds=True)
    imported = replace(
        predicted,
        provenance="imported",
        host=replace(predicted.host, fingerprint=replace(predicted.host.fingerprint, hardware_class="class-2t-1f")),
        origin=Origin("another-host", "class-2t-1f", "2026-01-02T03:04:05+00:00"),
        check=check,
    )
    text = text_of(render(imported, MODEL))
    assert "imported from a host of the same kind" in text
    assert "another-host (class-2t-1f), 2026-01-02T03:04:05+00:00" in text
    assert "2026-02-03T04:05:06+00:00, in 3.0 s: 20 tokens/s (TPOT 50 ms" in text
    assert "predicted before, which holds within 5.0%" in text
    broken = replace(imported, check=replace(check, holds=False, prefill_ran=False))
    text = text_of(render(broken, MODEL))
    assert "in 3.0 s: TPOT 50 ms, 0.0% faster than the TPOT 50 ms predicted before, which no longer holds" in text
    assert "no prompt was run" in text


def test_a_replayed_result_says_that_nobody_measured_it(hybrid: Result) -> None:
    """A synthetic host's figures are no measurements."""
    text = text_of(render(hybrid, MODEL))
    assert "decided from a recording" in text
    assert "synthetic host, which nobody measured" in text
    assert "Roofline of cuda:0" in text
    assert "handing over" in text


def test_a_study_of_predictions_is_reported(predicted: Result) -> None:
    """How near it came to the exact best, or that it found nothing."""
    search = predicted.decision.search
    study = Study("TPESampler", 7, 128, 63, None, 0.088)

    def text(found: Study) -> str:
        decision = replace(predicted.decision, search=replace(search, study=found))
        return text_of(render(replace(predicted, decision=decision), MODEL))

    assert "(TPESampler, seed 7) came within 8.8 % of the exact best in 128 trials, 63 of them feasible" in text(study)
    assert "found nothing feasible" in text(replace(study, gap=None, feasible_trials=0))


def test_a_result_without_a_default_has_no_speed_up(predicted: Result) -> None:
    """Where the fallback itself does not fit."""
    assert "Speed-up over the default" in render(predicted, MODEL)
    changed = replace(predicted, decision=replace(predicted.decision, default=None, speedup_over_default=None))
    assert "Speed-up over the default" not in render(changed, MODEL)


def test_what_a_file_brings_along_is_escaped(confirmed: Result) -> None:
    """Names, notes and reasons are text, in the page and in its drawings, whatever they hold."""
    evil = "<script>alert('1')</script>\"&<img src=x onerror=alert(2)>"
    assert confirmed.confirmation is not None
    trial = replace(confirmed.confirmation.trials[0], origin=evil, reason=evil)
    changed = replace(
        confirmed,
        model=replace(confirmed.model, name=evil, notes=(evil,)),
        host=replace(confirmed.host, label=evil, cpu=replace(confirmed.host.cpu, name=evil)),
        warnings=(evil,),
        confirmation=replace(confirmed.confirmation, trials=(trial, *confirmed.confirmation.trials)),
    )
    page = render(changed, evil, {"format": evil})
    assert "<script" not in page
    assert "<img" not in page
    assert text_of(page).count(evil) >= 6
    for drawing in SVG.findall(page):
        ET.fromstring(drawing)


def test_the_commands_repeat_what_was_asked_for(predicted: Result) -> None:
    """With the options of the request, quoted for a shell."""
    request = {"workload": "server", "format": "TL2", "prompt": None, "max_batch": 4, "max_tpot_ms": 80.0}
    text = text_of(render(predicted, "my model.gguf", request))
    tail = "'my model.gguf' --workload server --format TL2 --max-batch 4 --max-tpot-ms 80.0"
    assert f"python -m autotune tune {tail} --force" in text
    assert f"python -m autotune retune {tail}" in text
    for command in ("explain", "confirm"):  # under another format another result is saved
        assert f"python -m autotune {command} 'my model.gguf' --workload server --format TL2" in text


def test_a_result_for_chat_shows_times_per_token() -> None:
    """Its search is after them; batches there are none to choose from."""
    chat = confirm(replayed("server-slow-gpu", "bitnet-b1.58-2B-4T", "chat"))
    text = text_of(render(chat, MODEL))
    assert "Each trial's time per output token; less is better" in text
    assert "Over batch size" not in text
    assert "On 2 cpu" not in text


def test_layers_that_differ_are_drawn_by_kind(predicted: Result) -> None:
    """With their numbers, shortened in the drawing where there are too many, in full in the table."""
    page = render(mixed(predicted), MODEL)
    (figure,) = re.findall(r"<figure>\s*<h3>Layer by layer</h3>.*?</figure>", page, flags=re.DOTALL)
    labels = [label for label in re.findall(r'class="label"[^>]*>([^<]*)<', figure) if "layers" in label]
    assert len(labels) == 2
    assert all("…" in label for label in labels)
    assert "layers 3, 6, 9, 12, 15, 18, 21, 24, 27, 30 on cpu" in text_of(figure)
    assert "Layers that are alike are drawn once" in text_of(figure)


def test_a_search_without_a_feasible_trial_has_no_best(confirmed: Result) -> None:
    """Its chart has the trials alone."""
    assert confirmed.confirmation is not None
    last = replace(confirmed.confirmation.trials[-1], reason=None)
    alone = replace(confirmed.confirmation, trials=(last,))
    page = render(replace(confirmed, confirmation=alone), MODEL)
    assert "1 trial in order (1 failed)." in page
    assert 'class="incumbent"' not in page


def test_the_chosen_one_stands_alone_where_no_usual_rule_is_possible(predicted: Result) -> None:
    """As where each of them breaks a limit: all are outlined, each with its reason, and none is compared with."""
    search = replace(predicted.decision.search, effective_max_tpot_s=1e-6)
    text = text_of(render(replace(predicted, decision=replace(predicted.decision, search=search)), MODEL))
    assert "Fallback: a token takes" in text
    assert "times the output of the best that is possible" not in text
