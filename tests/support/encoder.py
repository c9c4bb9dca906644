"""The mark of tests that need the packaged text encoder."""

import pytest

from dataset_tools.encoders.text_encoder import missing_packages
from recbole_tema.errors import how_to_get

needs_encoder = pytest.mark.skipif(
    bool(missing_packages()), reason=f"no {', '.join(missing_packages())}: {how_to_get('features')}"
)
