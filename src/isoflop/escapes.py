"""Escaping of text from files for a terminal, JSON and Markdown."""

import json
import re

NO_BREAK_SPACE = "\xa0"  # between a number and its unit


def printable(text: str, kept: str = "") -> str:
    """`text` with everything escaped that is not a character of one line, except those in `kept`.

    Names of classes, files and columns come from strangers: an escape sequence in one would move a terminal's cursor or
    set its title, a line break would forge a line, a mark of direction turns round what stands beside it.
    """

    def escaped(found: re.Match[str]) -> str:
        c = found[0]
        if c == NO_BREAK_SPACE:
            return " "
        return c if c.isprintable() or c in kept else c.encode("unicode_escape", "surrogatepass").decode()

    return text if text.isprintable() else re.sub(r"[^ -~]", escaped, text)


def escaped_json(text: str) -> str:
    """JSON that says the same as `text` and is printable, line breaks between its values aside."""
    return re.sub(r"[^\n -~]", lambda found: found[0] if found[0].isprintable() else json.dumps(found[0])[1:-1], text)


def markdown_text(value: object) -> str:
    """`value` as plain text of one line of Markdown: no link, no markup, no HTML, no cell of a table ends in it."""
    return re.sub(r"([\\`*\[\]<>|&~$])", r"\\\1", printable(str(value)))


def markdown_code(value: object) -> str:
    """`value` as code within a line of Markdown, whatever backticks it has."""
    text = printable(str(value)).replace("|", "\\x7c")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    blank = " " if "`" in text or text != text.strip() or not text else ""
    return f"{fence}{blank}{text}{blank}{fence}"
