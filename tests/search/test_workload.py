import pytest

from autotune.errors import UsageError
from autotune.search.workload import batch_grid, chunk_grid, make_workload


def test_server_limits_the_time_per_token_and_may_relax_its_own_limit(make_model):
    workload = make_workload("server", make_model())
    assert (workload.max_tpot_s, workload.relaxed_tpot_ratio, workload.max_batch) == (0.1, 1.25, 32)
    assert (workload.prompt_tokens, workload.output_tokens, workload.context_tokens) == (512, 256, 2048)


def test_a_limit_that_the_user_gave_is_never_relaxed(make_model):
    workload = make_workload("server", make_model(), max_tpot_ms=50, max_ttft_ms=1500.0)
    assert (workload.max_tpot_s, workload.max_ttft_s, workload.relaxed_tpot_ratio) == (0.05, 1.5, None)


@pytest.mark.parametrize(("name", "max_batch"), [("chat", 1), ("offline", 64)])
def test_chat_and_offline_have_no_limits_of_their_own(make_model, name, max_batch):
    workload = make_workload(name, make_model())
    assert (workload.max_tpot_s, workload.max_ttft_s, workload.relaxed_tpot_ratio) == (None, None, None)
    assert workload.max_batch == max_batch


@pytest.mark.parametrize(
    ("max_context", "given", "expected"),
    [
        (4096, {}, (512, 256, 2048)),
        (4096, {"prompt": 3000}, (3000, 256, 3256)),
        (4096, {"context": 4000}, (512, 256, 4000)),
        (1024, {}, (512, 256, 1024)),
        (300, {}, (200, 100, 300)),
        (4096, {"context": 300}, (200, 100, 300)),
        (300, {"output": 290}, (10, 290, 300)),
        (300, {"prompt": 290}, (290, 10, 300)),
    ],
)
def test_lengths_left_open_fit_the_context(make_model, max_context, given, expected):
    workload = make_workload("server", make_model(max_context=max_context), **given)
    assert (workload.prompt_tokens, workload.output_tokens, workload.context_tokens) == expected


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("batch", {}, "the workload must be one of chat, server, offline, got 'batch'"),
        ("server", {"prompt": 0}, "--prompt must be a whole number of at least 1, got 0"),
        ("server", {"output": -3}, "--output must be a whole number of at least 1, got -3"),
        ("server", {"output": 2.5}, "--output must be a whole number of at least 1, got 2.5"),
        ("server", {"max_batch": True}, "--max-batch must be a whole number of at least 1, got True"),
        ("server", {"max_batch": 5000}, "--max-batch must be at most 4096, got 5000"),
        ("chat", {"max_batch": 2}, "--max-batch must be 1 for chat, which serves one sequence, got 2"),
        (
            "server",
            {"context": 5000},
            "--context must be at most 4096, the longest context of synthetic, got 5000",
        ),
        (
            "server",
            {"prompt": 4000, "output": 200},
            "prompt and output must fit the context of 4096 tokens, got 4000 + 200 = 4200",
        ),
        (
            "server",
            {"prompt": 512, "context": 512},
            "prompt and output must fit the context of 512 tokens, got 512 + 1 = 513",
        ),
        ("server", {"max_tpot_ms": 0}, "--max-tpot-ms must be a positive number of milliseconds, got 0"),
        (
            "server",
            {"max_ttft_ms": float("nan")},
            "--max-ttft-ms must be a positive number of milliseconds, got nan",
        ),
        ("server", {"max_tpot_ms": "5"}, "--max-tpot-ms must be a positive number of milliseconds, got '5'"),
    ],
)
def test_values_that_no_run_could_use_are_refused_in_one_sentence(make_model, name, options, sentence):
    with pytest.raises(UsageError) as caught:
        make_workload(name, make_model(), **options)
    assert str(caught.value) == sentence


def test_batches_are_powers_of_two_and_the_largest():
    assert batch_grid(1) == (1,)
    assert batch_grid(32) == (1, 2, 4, 8, 16, 32)
    assert batch_grid(20) == (1, 2, 4, 8, 16, 20)


def test_chunks_end_with_the_prompt_or_512_tokens():
    assert chunk_grid(7) == (7,)
    assert chunk_grid(32) == (32,)
    assert chunk_grid(100) == (32, 64, 100)
    assert chunk_grid(512) == chunk_grid(9999) == (32, 64, 128, 256, 512)
