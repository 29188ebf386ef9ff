"""The stages of the pipeline that `dvc.yaml` and `params.yaml` compose.

    python -m attune pipeline

prints the diagram of the README as Mermaid: the stages of a foreach or matrix are one node, implied arrows are left
out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attune.runtime.cli import command_parser
from attune.runtime.errors import UserError


def stages_in_order(targets: Sequence[str] = ()) -> list[str]:
    """The stages in topological order, otherwise in the order of dvc.yaml.

    Args:
        targets: stages; only they and their dependencies are returned. Empty: all.

    Raises:
        UserError: a target is not a stage.
    """
    from dvc.repo import Repo

    with Repo() as repo:
        return [stage.name for stage in in_order(repo, targets)]


def in_order(repo: Any, targets: Sequence[str]) -> list[Any]:
    """DVC's stages of `stages_in_order`.

    Raises:
        UserError: a target is not a stage.
    """
    from networkx import ancestors, lexicographical_topological_sort

    # DVC's edges point from a stage to its dependencies.
    graph = repo.index.graph.reverse()
    position = {stage: i for i, stage in enumerate(repo.index.stages)}
    named = {stage.name: stage for stage in position}
    if unknown := [target for target in targets if target not in named]:
        raise UserError(f"{unknown[0]} is not a stage of the pipeline that params.yaml composes")
    wanted = {stage for target in targets for stage in (*ancestors(graph, named[target]), named[target])}
    ordered = lexicographical_topological_sort(graph, key=position.__getitem__)
    return [stage for stage in ordered if not targets or stage in wanted]


def diagram() -> str:
    """The kinds of stages as a Mermaid flowchart, with an arrow from each dependency to its dependent."""
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
