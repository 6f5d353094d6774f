"""Every Python example of README and docs runs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "pages").glob("*.md"))]
BLOCKS = [
    pytest.param(block, id=f"{page.name}-{number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]


def test_there_are_examples() -> None:
    assert len(BLOCKS) >= 5


@pytest.mark.filterwarnings("ignore:ARM")  # of an example that shows when ARM warns
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning", "ignore::UserWarning:lightning")
@pytest.mark.parametrize("block", BLOCKS)
def test_example_runs(block: str) -> None:
    exec(compile(block, "example", "exec"), {})


def test_every_public_name_is_in_the_api_page() -> None:
    import unmuddle
    from unmuddle import arm, supcon, testing, uerm

    page = (ROOT / "docs" / "pages" / "api.md").read_text()
    documented = {line.split(".")[-1] for line in page.splitlines() if line.startswith(":::")}
    public = {name for module in (unmuddle, arm, supcon, testing, uerm) for name in module.__all__}
    assert public <= documented
