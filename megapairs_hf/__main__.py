"""`python -m megapairs_hf`, for `accelerate launch -m megapairs_hf …` and `torchrun -m megapairs_hf …`.

What surprises: with `-m`, Python searches the current folder before everything else, so that a `datasets.py` or
`queue.py` of the user's would be taken for the package of that name. The folder is taken off the path, as it is for
`megapairs`; where the package itself lies in it, in a checkout, it is searched last.
"""

import os
import sys

if __name__ == "__main__" and __spec__ is not None and sys.path[:1] == [os.getcwd()]:  # noqa: PTH109 - nothing is loaded
    HERE = sys.path.pop(0)
    if os.path.dirname(os.path.dirname(os.path.abspath(__file__))) == HERE:  # noqa: PTH100, PTH120
        sys.path.append(HERE)

from megapairs_hf.cli import main

sys.exit(main())
