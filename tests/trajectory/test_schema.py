"""The documentation contains the schema's tables."""

from lsam_hpc.trajectory import schema
from tests.helpers.mpis import ROOT


def test_docs_contain_the_tables():
    assert (ROOT / "docs" / "reference" / "logs.md").read_text().endswith(schema.markdown())
