"""Accuracies of networks on clean images and under attacks."""
