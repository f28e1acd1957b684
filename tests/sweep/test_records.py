"""What a record may hold."""

import dataclasses

import pytest

from dlmjax.errors import InputError
from dlmjax.sweep.records import Record
from tests.fit.synthetic import record


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


def test_a_domain_whose_loss_is_not_finite_is_a_record():
    values = dataclasses.asdict(record(status="diverged", loss=None, domains={"a": None, "b": 2.0}, mixture={"a": 0.5, "b": 0.5}))
    assert Record.of(values).domains == {"a": None, "b": 2.0}
    with pytest.raises(InputError, match="a of domains of the record 'r' is -1.0; give a number from 0"):
        Record.of(values | {"domains": {"a": -1.0}})
