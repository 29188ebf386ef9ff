"""EPITOME (Sharma et al. 2020): three levels of empathy."""
