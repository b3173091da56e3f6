"""The monitor and the producer."""

import pytest
from django.core.management import CommandError, call_command

from capataz.models import Task


def test_the_producer_submits_and_the_monitor_shows(transactional_db, capsys):
    call_command("setup_platform", verbosity=0)
    call_command("producer", count=4, rate=1000)
    assert Task.objects.filter(submitted_by="producer").count() == 4
    call_command("monitor", once=True)
    shown = capsys.readouterr().out
    assert "pending 4" in shown
    assert "queue       default" in shown
    assert "success rate -" in shown


def test_the_producer_refuses_a_senseless_rate(transactional_db):
    with pytest.raises(CommandError, match="above 0"):
        call_command("producer", rate=0)
