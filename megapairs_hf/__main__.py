"""`python -m megapairs_hf`, for `accelerate launch -m megapairs_hf …` and `torchrun -m megapairs_hf …`."""

import sys

from megapairs_hf.cli import main

sys.exit(main())
