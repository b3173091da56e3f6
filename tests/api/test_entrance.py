"""The entrance: browsers and programs are led to different doors."""

import json

from django.test import Client


def test_a_browser_is_sent_to_the_dashboard() -> None:
    response = Client().get("/", headers={"Accept": "text/html,*/*;q=0.8"})
    assert (response.status_code, response["Location"]) == (302, "/dashboard/")


def test_a_program_is_told_where_things_are() -> None:
    response = Client().get("/", headers={"Accept": "*/*"})
    assert json.loads(response.content)["endpoints"]["tasks"] == "/api/v1/tasks"
    assert response["Vary"] == "Accept"
