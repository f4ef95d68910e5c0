"""`apigwctl routes` of a real gateway."""

from tests.cli.tool import run
from tests.e2e.gateway import Gateway


def test_the_table_by_pattern_with_what_each_route_asks_for(gateway: Gateway) -> None:
    ran = run("--config", str(gateway.main_file), "routes")
    assert ran.status == 0
    lines = [line.split() for line in ran.out.splitlines()[2:]]
    assert [line[0] for line in lines] == ["/api/*", "/grace/*", "/pub/*"]
    assert "jwt read (grace period)" in ran.out and "team-old" in ran.out and "5000 ms" in ran.out


def test_routes_of_a_backend_or_an_owner(gateway: Gateway) -> None:
    def found(*words: str) -> list[str]:
        said = run("--config", str(gateway.main_file), "routes", "--json", *words).json()
        return [one["route_id"] for one in said]

    assert found() == ["api", "grace", "pub"]
    assert found("--owner", "team-old") == ["grace"]
    assert found("--backend", "dead") == []
