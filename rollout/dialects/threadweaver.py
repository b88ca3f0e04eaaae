"""ThreadWeaver's tags (arXiv 2512.07843): flat blocks, joined by re-reading the transcript.

    <think> text <Parallel><Outlines><Outline>1: task</Outline><Outline>2: task</Outline></Outlines>   the model stops
    \\n<Thread>\\n1: body\\n</Thread><Thread>\\n2: body\\n</Thread>    headers forced, bodies sampled at once
    \\n</Parallel> text </think> answer eos                            </Parallel> forced, the rest sampled

White space between tags is optional in the grammar; demonstrations write none inside what the policy samples, as every
token of the outlines lies on the critical path. As in the paper (section 3.2) the client writes `</Parallel>`; with the
older data's conclusion it writes `<Conclusion>` and the model closes both.
"""

from dataclasses import dataclass

from rollout.dialects.tagged import Grammar, Tagged


@dataclass(frozen=True, slots=True)
class ThreadWeaverOptions:
    """`conclusion`: after the join the model first writes a conclusion, as in the data of the public code's default."""

    conclusion: bool = False


class ThreadWeaver(Tagged):
    """Flat blocks, numbered outlines 1..n."""

    name = "threadweaver"
    Options = ThreadWeaverOptions

    @classmethod
    def grammar(cls, options: ThreadWeaverOptions) -> Grammar:
        concludes = options.conclusion
        return Grammar(
            opens=("<Parallel>", "<Outlines>"),
            items=(("<Outline>", "</Outline>"),),
            forks="</Outlines>",
            shared="\n",
            header="<Thread>\n{k}:",
            body_end="\n",
            ends="</Thread>",
            join="\n<Conclusion>\n" if concludes else "\n</Parallel>",
            concludes=("</Conclusion>", "</Parallel>") if concludes else (),
            closers=((("<Conclusion>", "</Conclusion>"),) if concludes else ()) + (("<Parallel>", "</Parallel>"),),
        )
