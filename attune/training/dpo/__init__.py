"""Direct preference optimisation (Rafailov et al. 2023) of a LoRA adapter, one epoch of pairs per round.

Read the files in this order:

1. `loss`             the sigmoid loss, and what its gradient does to the two replies
2. `encoding`         preference pairs as token ids
3. `packing`          (in `training.common`) documents that share a context as a prefix, packed into sequences
4. `packed_forward`   (there) log-probabilities of all replies from one forward pass of the packed sequences
5. `reference_logps`  the reference model's log-probabilities: computed once, kept in a file
6. `trl_losses`       all other losses, by TRL's code, and the value that each has where the policy is the reference
7. `packed_batches`   batches of pairs for TRL's trainer
8. `packed_trainer`   TRL's trainer on packed batches; TRL computes the loss
9. `trainer`          `make_trainer`, which puts the above together
10. `round`           `train_round`: one round from its pairs to its checkpoint, called by stage `dpo`
11. `movement`        what a round moved, on held-out pairs
"""
