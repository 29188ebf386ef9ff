"""What every stage that runs torch needs: threads, device, autocast, batches by length."""
