"""What tests ask a page of the report."""

import json
import re
from html import unescape

from adjoined.report import read_run
from adjoined.report.page import page_of


def page_alone(*folders):
    """The page, without the pictures beside it."""
    return page_of([read_run(folder) for folder in folders])


def figures(page):
    """Key → figure of everything that the page draws."""
    text = re.search(r'<script type="application/json" id="figures">(.*?)</script>', page, re.DOTALL)
    assert text
    return json.loads(text[1])


def shown(page):
    """The words of the page, without tags."""
    body = page.partition("<main>")[2].partition("</main>")[0]
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", body)).split())
