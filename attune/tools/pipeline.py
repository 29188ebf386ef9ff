"""The stages of the pipeline that `dvc.yaml` and `params.yaml` make together.

    python -m attune pipeline

prints the diagram of the README: `dvc dag` with the stages of a foreach as one, without the arrows that others imply.
"""

from __future__ import annotations

from collections.abc import Sequence

from attune.runtime.cli import command_parser
from attune.runtime.errors import UserError


def stages_in_order(targets: Sequence[str] = ()) -> list[str]:
    """The stages, each behind those that it depends on, else as dvc.yaml has them.

    Args:
        targets: stages; they and what they depend on are all that is returned. None: all.

    Raises:
        UserError: a target is no stage.
    """
    from dvc.repo import Repo
    from networkx import ancestors, lexicographical_topological_sort

    with Repo() as repo:
        # DVC's edges run from a stage to what it depends on.
        graph = repo.index.graph.reverse()
        place = {stage: i for i, stage in enumerate(repo.index.stages)}
        named = {stage.addressing: stage for stage in place}
        if unknown := [target for target in targets if target not in named]:
            raise UserError(f"{unknown[0]} is no stage of the pipeline that params.yaml composes")
        wanted = {one for target in targets for one in (*ancestors(graph, named[target]), named[target])}
        ordered = lexicographical_topological_sort(graph, key=place.__getitem__)
        return [stage.addressing for stage in ordered if not targets or stage in wanted]


def diagram() -> str:
    """The kinds of stages as a Mermaid flowchart, each arrow from a stage to one that needs it."""
    from dvc.repo import Repo
    from networkx import DiGraph, transitive_reduction

    kinds: DiGraph = DiGraph()
    with Repo() as repo:
        for needs, needed in repo.index.graph.edges:
            before, after = (stage.addressing.partition("@")[0] for stage in (needed, needs))
            if before != after:
                kinds.add_edge(before, after)
    arrows = sorted(transitive_reduction(kinds).edges)
    return "flowchart LR\n" + "".join(f"\t{before} --> {after}\n" for before, after in arrows)


def main(argv: Sequence[str]) -> None:
    """Print the diagram."""
    command_parser("pipeline", __doc__).parse_args(argv)
    print(diagram(), end="")
