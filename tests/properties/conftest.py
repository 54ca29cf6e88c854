"""How long properties are looked for counterexamples: `make test` briefly, `make fuzz` long."""

import functools
import logging

import pytest
from hypothesis import HealthCheck, settings

COMMON = {"deadline": None, "database": None, "suppress_health_check": [HealthCheck.too_slow]}

settings.register_profile("test", max_examples=5, derandomize=True, **COMMON)
settings.register_profile("fuzz", max_examples=200, print_blob=True, **COMMON)
settings.load_profile("test")


@pytest.fixture(scope="module", autouse=True)
def silence():
    """Warnings of a hundred cases would bury the one that fails."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="session")
def opened(checkpoint):
    """Loads a tiny checkpoint as one of the two kinds of model."""
    import safehead_tl as sh

    return functools.cache(lambda name, backend: sh.load_model(checkpoint(name), backend=backend))
