"""Two ways at once, then what they have in common."""

from rollout.dialects.tagged import Grammar, Tagged


class Ways(Tagged):
    """`<think> <ways> <way> .. </way> <way> .. </way> <common> .. </common> </think> answer`."""

    name = "ways"

    @classmethod
    def grammar(cls, options: object) -> Grammar:
        return Grammar(
            forks="<ways>",  # the model stops here
            threads=2,
            header="<way>",  # forced at the head of each thread
            ends="</way>",  # a thread stops here
            join="<common>",  # forced after the last thread
            concludes=("</common>",),  # what the model must close first
            closers=(("<common>", "</common>"),),  # what is closed for a root that is out of budget
        )
