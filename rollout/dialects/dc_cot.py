"""DC-CoT's tags (arXiv 2601.23027): always three workers, no plan; the join re-reads the transcript.

<think> text <spawn_workers>                         the model stops
<worker_1> body </worker_1><worker_2> body </worker_2><worker_3> body </worker_3>
</spawn_workers> text </think> answer eos            </spawn_workers> forced, the rest sampled
"""

from rollout.dialects.tagged import Grammar, Tagged


class DcCot(Tagged):
    """Flat blocks of three workers."""

    name = "dc_cot"

    @classmethod
    def grammar(cls, options: object) -> Grammar:
        return Grammar(
            forks="<spawn_workers>",
            threads=3,
            header="<worker_{k}>",
            ends="</worker_{k}>",
            join="</spawn_workers>",
            closers=(("<spawn_workers>", "</spawn_workers>"),),
        )
