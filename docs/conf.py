# Sphinx settings: sphinx-build -W --keep-going -b html docs docs/_build/html (make docs). Nothing is fetched from the network.
import sys
from importlib.metadata import version as installed
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_extensions")]

project = "bocmdp-gym"
author = "the bocmdp-gym authors"
copyright = author
release = version = installed("bocmdp-gym")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "formulas",
    "mathml",
    "pages",
]
exclude_patterns = ["_build", "_generated/includes"]
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the notebooks carry their outputs: make notebooks
nb_ipywidgets_js: dict[str, dict[str, str]] = {}  # no widgets, so no script from elsewhere

default_role = "py:obj"  # `optimize` in a docstring is a link where there is such a thing, and code where there is not
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signature of a class with ten options is unreadable with them; docstrings give types in words
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_preprocess_types = False

html_theme = "furo"
html_title = "bocmdp-gym"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["math.css", "pages.css"]
html_show_sourcelink = False
