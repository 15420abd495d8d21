"""What the cost model says in words: what bounds a step, and where it extrapolates."""

import pytest
from msgspec.structs import replace

from autotune.costmodel.model import CostModel
from autotune.records import Failure
from tests.builders import build_workload
from tests.costmodel.synthetic import HEAD, LARGE, SITES, SyntheticHost, campaign_of

WORKLOAD = build_workload(prompt_tokens=100, output_tokens=56)


def cost_model_of(outcomes, form="sum"):
    return CostModel(campaign_of(outcomes), {"cpu": form})


class TestBoundBy:
    """The verdict comes first, then the shares it rests on."""

    def verdict(self, host, model, configuration):
        """Of a step whose context is too short for attention to matter."""
        cost_model = cost_model_of([*host.ceilings(), *host.products()], host.form)
        return cost_model.bound_by(model, build_workload(prompt_tokens=1, output_tokens=1), configuration)

    def test_weights_that_take_longest_to_read_are_bound_by_memory(self, mixed_model, configuration):
        host = SyntheticHost(bytes_per_s=1e8, operations_per_s=1e13)
        said = self.verdict(host, mixed_model, configuration(batch_size=1))
        assert said.startswith("memory bandwidth: ")
        assert "of the measured read bandwidth (0.2 GB/s)" in said

    def test_many_tokens_on_slow_arithmetic_are_bound_by_it(self, mixed_model, configuration):
        host = SyntheticHost(bytes_per_s=1e12, operations_per_s=1e9)
        said = self.verdict(host, mixed_model, configuration(batch_size=64))
        assert said.startswith("arithmetic: ")
        assert "of the measured arithmetic (2 GOP/s)" in said

    def test_kernels_far_from_both_ceilings_are_their_own_limit(self, mixed_model, configuration):
        said = self.verdict(SyntheticHost(utilisation=0.1), mixed_model, configuration())
        assert said.startswith("what the kernels do besides")

    def test_where_memory_and_compute_time_add_up_both_can_be_the_limit(self, mixed_model, configuration):
        """Alone neither takes 60 % of the time, together they take nearly all."""
        balanced = SyntheticHost(bytes_per_s=1e9, operations_per_s=2.5e10)
        said = self.verdict(balanced, mixed_model, configuration(batch_size=8))
        assert said.startswith("memory bandwidth and arithmetic together: ")

    def test_where_the_larger_hides_the_smaller_both_are_no_limit_together(self, mixed_model, configuration):
        """Their shares add up to more than 60 %, but overlap: each alone leaves most of the time to the kernels."""
        balanced = SyntheticHost("max", bytes_per_s=1e9, operations_per_s=2.5e10, utilisation=0.5)
        said = self.verdict(balanced, mixed_model, configuration(batch_size=8))
        assert said.startswith("what the kernels do besides")

    def test_of_two_ceilings_that_are_both_near_the_nearer_one_is_named(self, mixed_model, configuration):
        host = SyntheticHost("max", bytes_per_s=1e9, operations_per_s=1.5e10)
        for batch, name in ((3, "memory bandwidth"), (4, "arithmetic")):
            assert self.verdict(host, mixed_model, configuration(batch)).startswith(f"{name}: ")

    def test_time_is_shared_out_over_the_parts_of_the_step(self, mixed_model, configuration):
        """Of 1 s: layers' products 0.5 s, head 0.25 s, attention of two sequences 0.15 s, small operations 0.1 s."""
        model = replace(mixed_model, layers=mixed_model.layers[:1])
        host = SyntheticHost()
        times = {"attention": 0.075, "layer_ops": 0.1}
        outcomes = [
            replace(found, samples_s=(0.25 if found.point.format == "F16" else 0.125,))
            for found in host.products(SITES, (2,), (2,))
        ]
        outcomes += [
            replace(found, samples_s=(times[found.point.op],))
            for found in host.layer_rest((2,), (1, 2), (128,))
            if found.point.op == "layer_ops" or found.point.m == 1
        ]
        said = cost_model_of([*host.ceilings(), *outcomes]).bound_by(model, WORKLOAD, configuration(batch_size=2))
        assert said.endswith(
            "time goes to the layers' products 50%, the head 25%, attention 15%, norms, gate and quantisation 10%"
        )


class TestCaveats:
    """What was not interpolated is said, a sentence each."""

    HOST = SyntheticHost()

    def caveats(self, outcomes, model, configuration, workload=WORKLOAD):
        return cost_model_of(outcomes).caveats(model, workload, configuration)

    def test_inside_the_measured_range_there_are_none(self, mixed_model, configuration):
        outcomes = self.HOST.outcomes()
        assert self.caveats(outcomes, mixed_model, configuration()) == ()
        assert self.caveats(outcomes, mixed_model, configuration(64, 64, 8, 1)) == ()
        assert self.caveats(outcomes, mixed_model, configuration(decode_threads=5, prefill_threads=3)) == ()

    def test_a_batch_beyond_the_largest_m_of_the_head(self, mixed_model, configuration):
        head = self.HOST.products((HEAD,), tokens=(1, 4))
        rest = [*self.HOST.ceilings(), *self.HOST.layer_rest(), *self.HOST.products(SITES[:-1])]
        assert self.caveats([*rest, *head], mixed_model, configuration(batch_size=4)) == ()
        (said,) = self.caveats([*rest, *head], mixed_model, configuration(batch_size=16))
        assert said == "decode: products at m = 16 are extrapolated, the largest timed m is 4"

    def test_a_chunk_beyond_the_largest_m_of_any_layer_site(self, mixed_model, configuration):
        larger = self.HOST.products((LARGE,), tokens=(1, 16))
        usual = self.HOST.products([site for site in SITES if site != LARGE])
        rest = [*self.HOST.ceilings(), *self.HOST.layer_rest()]
        (said,) = self.caveats([*rest, *usual, *larger], mixed_model, configuration(prefill_chunk=64))
        assert said == "prefill: products at m = 64 are extrapolated, the largest timed m is 16"

    def test_a_chunk_longer_than_the_prompt_is_only_as_long_as_the_prompt(self, mixed_model, configuration):
        short = build_workload(prompt_tokens=50, output_tokens=10)
        assert self.caveats(self.HOST.outcomes(), mixed_model, configuration(prefill_chunk=512), short) == ()

    def test_the_largest_m_is_that_of_the_thread_count(self, mixed_model, configuration):
        """A budget that ended early timed m = 64 on 4 threads alone; between counts the fewest m hold."""
        products = [found for found in self.HOST.products() if found.point.m < 64 or found.point.threads == 4]
        outcomes = [*self.HOST.ceilings(), *self.HOST.layer_rest(), *products]
        assert self.caveats(outcomes, mixed_model, configuration(64, 16, decode_threads=4)) == ()
        for threads in (2, 3):
            (said,) = self.caveats(outcomes, mixed_model, configuration(64, 16, decode_threads=threads))
            assert said == "decode: products at m = 64 are extrapolated, the largest timed m is 16"

    @pytest.mark.parametrize("threads", [1, 16])
    def test_threads_outside_those_timed(self, mixed_model, configuration, threads):
        outcomes = [found for found in self.HOST.outcomes() if found.point.op != "matmul" or found.point.threads > 1]
        (said,) = self.caveats(outcomes, mixed_model, configuration(prefill_threads=threads))
        assert said == f"prefill: {threads} threads are extrapolated, products were timed on 2 to 8"

    def test_a_context_beyond_the_longest_in_decode(self, mixed_model, configuration):
        """Half of the output counts; prefill's own contexts end before it."""
        long = build_workload(prompt_tokens=200, output_tokens=400)
        (said,) = self.caveats(self.HOST.outcomes(), mixed_model, configuration(), long)
        assert said == "decode: attention over 400 tokens is extrapolated, the longest timed context is 256"

    def test_a_context_beyond_the_longest_of_the_chunk(self, mixed_model, configuration):
        """The last whole chunk of 400 tokens begins at 352, the remainder at 384; decode was timed further."""
        timed_far = self.HOST.layer_rest(tokens=(1,), contexts=(1024,))
        long = build_workload(prompt_tokens=400, output_tokens=10)
        said = self.caveats([*self.HOST.outcomes(), *timed_far], mixed_model, configuration(), long)
        assert said == tuple(
            f"prefill: attention over {context} tokens is extrapolated, the longest timed context is 256"
            for context in (352, 384)
        )

    def test_a_chunk_beyond_the_largest_m_of_attention(self, mixed_model, configuration):
        rest = [found for found in self.HOST.outcomes() if found.point.op != "attention"]
        outcomes = [*rest, *self.HOST.layer_rest(tokens=(1, 16))]
        (said,) = self.caveats(outcomes, mixed_model, configuration(), build_workload(prompt_tokens=64))
        assert said == "prefill: attention at m = 32 is extrapolated, the largest timed m is 16"

    def test_what_was_not_timed_at_all(self, mixed_model, configuration):
        outcomes = [
            Failure(found.point, "crashed", "the worker died") if found.point.n_out == LARGE.n_out else found
            for found in [*self.HOST.ceilings(), *self.HOST.products()]
        ]
        assert self.caveats(outcomes, mixed_model, configuration()) == (
            "I2_S 1536 x 256 was not timed: its time follows from the other I2_S products",
            "attention was not timed: its time is left out",
            "norms, gate and quantisation were not timed: their time is left out",
        )
