"""`python -m ard_jax.reproduce`: the papers' CIFAR-10 table within a time budget, in one session or several.

budget: hours -> schedule; measure: seconds of this machine; run: the phases in order; session: the clock;
pack: what is carried to the next machine; papers, report: the table beside the papers' numbers.
"""
