"""What a Metaflow card needs of a page."""

import html


def as_card(page: str) -> str:
    """A page as one line of HTML, which is what a Markdown component of a Metaflow card shows untouched."""
    source = html.escape(page).replace("\n", "&#10;").replace("\r", "&#13;")  # either ends a line of Markdown
    fit = "this.style.height=this.contentDocument.documentElement.scrollHeight+'px'"
    return f'<iframe srcdoc="{source}" style="width:100%;height:90vh;border:0" onload="{fit}"></iframe>'
