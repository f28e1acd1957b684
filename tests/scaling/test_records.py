"""What a record may hold."""

import dataclasses

import pytest

from dlmjax.errors import InputError
from dlmjax.scaling.records import Record
from tests.scaling.synthetic import record


@pytest.mark.parametrize("name", ["loss", "parameters", "tokens", "flops", "flops_per_token"])
def test_what_a_finished_run_has_none_of_is_refused(name):
    """Laws are fitted to logarithms; a run that diverged at once may have seen nothing."""
    values = dataclasses.asdict(record())
    values[name] *= 0
    with pytest.raises(InputError, match=f"{name} of the record 'r' is 0.*; that of a finished run is above 0"):
        Record.of(values)
    assert Record.of(values | {"status": "diverged"}).status == "diverged"


@pytest.mark.parametrize("value", [[], "", 5, None])
def test_another_value_is_no_record(value):
    with pytest.raises(InputError, match="a record is an object of names and values"):
        Record.of(value)
