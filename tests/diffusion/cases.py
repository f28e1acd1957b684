"""All cases of the battery. A family's cases stand in a file of their own, which is added here by one import and one term."""

from tests.diffusion import cases_discrete, cases_jump, cases_spine

CASES = cases_spine.CASES + cases_discrete.CASES + cases_jump.CASES
NOISY = [case for case in CASES if case.kernel is not None]
