"""SFT and DPO."""
