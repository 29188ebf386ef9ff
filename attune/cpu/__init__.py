"""Faster CPU kernels. Other packages call `attune.cpu.optimize` alone; a GPU run never enters the kernels.

Each kernel is a file that states its equation, its gradient and why it is faster: `lora`, `norm`, `dropout` and `casts`
serve all training, `document_attention`, `last_layer` and `token_log_probs` the packed sequences of DPO, and
`packed_weights` inference.
"""
