"""Texts of shops as a reader sees them: entities, markup and code go, once, at conversion."""

import html
import re

ENTITY = re.compile(r"&(?:#\d+|#[xX][0-9a-fA-F]+|[A-Za-z][A-Za-z0-9]+);")
SUSPECT = re.compile(r"[<&{]|\bvar |function\s*\(|\$\(")
INLINE = "a abbr b bdi big cite code em font i ins mark s small span strike strong sub sup tt u"
BLOCK = (
    "article aside blockquote br button center dd del div dl dt figure footer form h1 h2 h3 h4 h5 "
    "h6 header hr iframe img input label li link main meta nav ol p pre section select svg table "
    "tbody td textarea tfoot th thead tr ul video"
)
HIDDEN = re.compile(r"(?is)<(script|style)\b.*?(</\1\s*>|$)|<!--.*?(-->|$)")
TAGS = {  # HTML's own names alone: `<3` and a title in angle brackets are text
    "": re.compile(rf"(?i)</?(?:{INLINE.replace(' ', '|')})(?:\s[^<>]*)?/?>"),
    " ": re.compile(rf"(?i)</?(?:{BLOCK.replace(' ', '|')})(?:\s[^<>]*)?/?>"),
}
RULE = re.compile(r"[.#@][A-Za-z][^{}]*\{\s*[a-z-]+\s*:[^{}]*\}")  # of CSS
SCRIPT = re.compile(
    r"^\s*var \w+\s*=|\bfunction\s*\w*\s*\([^)]*\)\s*\{|\$\((?:document|window|['\"])"
    r"|document\.getElementBy|\bP\.when\(|\bwindow\.\w+\s*=[^=]"
)
MOST_ESCAPES = 3  # an entity of an entity of an entity


def without_markup(text: str) -> str:
    """`text` without HTML's tags, comments and entities, CSS and JavaScript; runs of blanks stay.

    A text that is a script is empty.

    >>> without_markup("Salt &amp;amp; <b>Pep</b>per<br>.box{color:#fff}")
    'Salt & Pepper '
    >>> without_markup("I <3 U & <Untitled>")
    'I <3 U & <Untitled>'
    """
    if not SUSPECT.search(text):
        return text
    for _ in range(MOST_ESCAPES):
        before, text = text, _unescaped(HIDDEN.sub(" ", text))
        if text == before:
            break
    text = HIDDEN.sub(" ", text)
    for blank, tag in TAGS.items():
        text = tag.sub(blank, text)
    text = RULE.sub("", text)
    return "" if SCRIPT.search(text) else text


def _unescaped(text: str) -> str:
    """Entities with their semicolon alone: `AT&T` and `Black&copy` are no markup."""
    return ENTITY.sub(lambda found: html.unescape(found[0]), text)


def category_tokens(joined: str, separator: str) -> str:
    """Texts of categories, joined by `separator`, as the tokens of a `token_seq`: each once, blanks
    within one as `_`."""
    texts = (without_markup(text) for text in joined.split(separator))
    tokens = ("_".join(text.split()) for text in texts)
    return " ".join(dict.fromkeys(token for token in tokens if token))
