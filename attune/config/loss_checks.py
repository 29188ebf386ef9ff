"""Conditions that join the keys of section `dpo` on its loss, and what a loss needs of the machine."""

from __future__ import annotations

from attune.config.schema import Dpo, Hardware
from attune.config.sections.preference_losses import OF_DIFFERENCE, READERS, REFERENCE_FREE, SORTING
from attune.runtime.errors import ParamsError


def check_loss(dpo: Dpo, hardware: Hardware, source: str) -> None:
    """Check that the losses go together and are not all weighted by 0, and that some loss reads each param that is set.

    Raises:
        ParamsError: a param of another loss, a combination that TRL does not compute, weights without effect, or a
            micro-batch that is too small for a loss that sorts.
    """
    losses, named = dpo.losses, f"dpo.loss = {', '.join(dpo.losses)}"
    free = [loss for loss in losses if loss in REFERENCE_FREE]
    if free and len(losses) > 1:
        raise ParamsError(f"{source}: {named}: {free[0]} has no reference model and combines with no other loss")
    _check_loss_weights(dpo, free, named, source)
    for param, readers in READERS.items():
        read = [loss for loss in losses if loss in readers]
        if getattr(dpo, param) is not None and not read:
            raise ParamsError(
                f"{source}: dpo.{param} = {getattr(dpo, param)!r} is a param of {', '.join(readers)}, and {named} does "
                "not read it: set it to null"
            )
        if getattr(dpo, param) is None and len({readers[loss] for loss in read}) > 1:
            raise ParamsError(f"{source}: {named} share dpo.{param}, whose usual values differ: set it")
    if "exo_pair" in losses and dpo.label_smoothing == 0:
        raise ParamsError(f"{source}: dpo.label_smoothing = 0, whose logarithm exo_pair takes: above 0, usually 0.001")
    _check_reference(dpo, free, named, source)
    _check_divergence(dpo, named, source)
    sorting = [loss for loss in losses if loss in SORTING]
    if sorting and (hardware.micro_batch_size < dpo.batch_size or hardware.processes * hardware.nodes > 1):
        raise ParamsError(
            f"{source}: {named} sorts the pairs of a batch, which must be one micro-batch of one process: set "
            f"training.micro_batch_size to dpo.batch_size = {dpo.batch_size}, and ranks.processes and ranks.nodes to 1"
        )


def _check_loss_weights(dpo: Dpo, free: list[str], named: str, source: str) -> None:
    """A weight for each loss, which something reads and which leaves something to train."""
    if dpo.loss_weights is None:
        return
    weights, losses = f"{source}: dpo.loss_weights = {dpo.loss_weights}", dpo.losses
    if free:
        raise ParamsError(f"{weights}, but {named} is a loss by itself and reads no weight: set it to null")
    if len(dpo.loss_weights) != len(losses):
        raise ParamsError(f"{weights}, but {named} needs {len(losses)} weights, or null for 1 each")
    if not any(dpo.loss_weights) and not dpo.sft_weight:
        raise ParamsError(
            f"{weights} and dpo.sft_weight = 0 train nothing: set one of them above 0, or dpo.loss_weights to null"
        )


def _check_reference(dpo: Dpo, free: list[str], named: str, source: str) -> None:
    """What reads a reference model needs a loss that has one."""
    if not free:
        return
    if dpo.ld_alpha is not None:
        raise ParamsError(
            f"{source}: dpo.ld_alpha = {dpo.ld_alpha} is for losses with a reference model, and {named} has none: set "
            "it to null"
        )
    if dpo.f_divergence != "reverse_kl":
        raise ParamsError(
            f"{source}: dpo.f_divergence = {dpo.f_divergence!r} is a distance from a reference model, and {named} has "
            "none: set it to reverse_kl"
        )
    if free == ["orpo"] and dpo.sft_weight:
        raise ParamsError(
            f"{source}: dpo.sft_weight = {dpo.sft_weight}, but orpo has the chosen side's likelihood as its own part, "
            "with weight 1: set it to 0"
        )


def _check_divergence(dpo: Dpo, named: str, source: str) -> None:
    other = [loss for loss in dpo.losses if loss not in OF_DIFFERENCE]
    if dpo.f_divergence != "reverse_kl" and other:
        raise ParamsError(
            f"{source}: dpo.f_divergence = {dpo.f_divergence!r} is for losses of the difference of two rewards "
            f"({', '.join(OF_DIFFERENCE)}), not for {named}: set it to reverse_kl"
        )
    if dpo.f_alpha is not None and dpo.f_divergence != "alpha_divergence":
        raise ParamsError(
            f"{source}: dpo.f_alpha = {dpo.f_alpha} is a param of dpo.f_divergence = alpha_divergence: set it to null"
        )
