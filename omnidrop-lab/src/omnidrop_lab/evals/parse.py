"""A strict parser of multiple-choice answers: the chosen letter, or None for *unparsed*; it never guesses.

A parser that always returns a letter turns empty answers, refusals and crashes into right answers (stock parsers do;
docs/evaluation.md lists where). An answer is evidence of four strengths, and the strongest evidence present must name
exactly one letter.

    1. final     `<answer>B</answer>`, `\\boxed{B}`, "Final answer: B"
    2. declared  "The answer is B", "Option B", "B is correct", "答案是B"; a line that is a letter and nothing else
    3. verbatim  the whole answer is the text of one option, word for word
    4. leading   a line that begins with a marked letter: "B. An apple", "(B) An apple", "B: ..."

Two letters of the same strength, a letter that is no option, a letter joined to another ("B or C"), a letter beside the
text of another option ("B. <text of C>"), a negated or doubtful declaration: None. Reasoning inside `<think>` is not
read.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

LETTERS = "ABCDEFGHIJ"

# A letter with or without brackets and quotes. Lower case counts only where nothing else can be meant (`_letters`).
MARK = r"(?P<open>[(\[{\"'])?(?P<letter>[A-Za-z])(?(open)[)\]}\"'])(?![A-Za-z0-9#+])"
# What may follow a declared letter, so that "the answer is A man" and "the answer is C major" declare nothing.
# Brackets are enough.
STOP = r"(?(open)|(?=\s*$|\s*[.,;:!)\]}\n]|\s*(?:because|since|as|which|due|for)\b|\s*-|\s*[^\x00-\x7f]))"
NOUN = (
    r"(?<![A-Za-z])(?:answer|ans\.?|option|choice|letter|response|答案|选项|答え|正解|정답|답|ответ|réponse|respuesta|antwort|resposta|risposta)"
    r"(?:\s+(?:to\s+the\s+question|here|for\s+this\s+question))?"
)
VERB = r"(?:\s*(?:is|are|was|would\s+be|should\s+be|must\s+be|will\s+be|est|es|ist|è|é|是|为|は|:|=)\s*:?)"
CHOOSE = r"(?:(?:choose|pick|select|chose|selected|go\s+with|going\s+with|opt\s+for)\s*:?|应选|选择|选)"
KIND = r"(?:\s*(?:the\s+)?(?:option|choice|letter|选项)\s*)?"
RIGHT = (
    r"\s+(?:is|seems|appears|looks)\s+(?:to\s+be\s+)?(?:clearly\s+)?(?:the\s+)?(?:most\s+|only\s+)?"
    r"(?:correct|right|best|accurate|appropriate|suitable|likely|answer)\b"
)
DECLARED = (
    re.compile(rf"{NOUN}{VERB}{KIND}\s*{MARK}{STOP}", re.I),
    re.compile(rf"(?<![A-Za-z]){CHOOSE}{KIND}\s*{MARK}{STOP}", re.I),
    re.compile(rf"(?<![A-Za-z])(?:it\s+is|it's){KIND}\s+{MARK}{STOP}", re.I),
    re.compile(rf"^\s*{NOUN}\s+{MARK}{STOP}", re.I | re.M),
    re.compile(rf"(?<![A-Za-z0-9]){MARK}{RIGHT}", re.I),
)
FINAL = re.compile(rf"final\s+(?:answer|choice|option){VERB}?{KIND}\s*{MARK}{STOP}", re.I)
BOXED = re.compile(r"\\boxed\s*\{\s*(?:\\text\s*\{)?\s*\(?([A-Za-z])\)?\s*\}|<answer>(.*?)</answer>", re.I | re.S)
THOUGHT = re.compile(r"<think>.*?(?:</think>|$)", re.I | re.S)
ALONE = re.compile(rf"\s*{MARK}[.,:;!]?\s*", re.I)
LEADING = re.compile(
    r"\s*(?P<mark>[(\[](?P<bracketed>[A-Za-z])[)\]][.:]?|(?P<plain>[A-Za-z])(?P<sign>[.):,]| -|\s))(?P<rest>.*)"
)
JOINED = re.compile(
    r"[\s)\]}.\"']*(?:(?:,|/|&|\band\b|\bor\b|和|或|及)\s*)+(?:(?:maybe|perhaps|possibly)\s+)?(?:option\s+)?"
    r"[(\[\"']?(?P<other>[A-Z])[)\]\"']?(?![A-Za-z0-9])"
)
DOUBT = re.compile(
    r"\b(?:not|never|if|whether|unless|doubt|wrong|incorrect|neither|nor|unlikely|cannot|can't|eliminate|exclude|"
    r"maybe|perhaps|possibly|might|could|unsure)\b|n't\b|不|错误",
    re.I,
)


def letter(text: str, options: Sequence[str]) -> str | None:
    """The letter that `text` chooses among `options` (their texts, without letters), or None where it is unclear.

    At most ten options. The rules are the module's.
    """
    legal = LETTERS[: len(options)]
    text = THOUGHT.sub("", _plain(text))
    for found in (_final(text, options), _declared(text), _verbatim(text, options), _leading(text, options)):
        letters = set(found)
        if letters:
            chosen = letters.pop()
            return chosen if not letters and chosen in legal else None
    return None


def _plain(text: str) -> str:
    """Full-width signs as ASCII, without the stars, underscores and backticks of markdown, without `$` of LaTeX."""
    text = unicodedata.normalize("NFKC", text).translate({ord("’"): "'", ord("。"): ".", ord("、"): "."})
    return re.sub(r"[*`$]|\b__|__\b|^#+\s|^>\s?", "", text, flags=re.M).strip()


def _final(text: str, options: Sequence[str]) -> Iterator[str]:
    for match in BOXED.finditer(text):
        yield match[1].upper() if match[1] else letter(match[2], options) or "?"
    for match in FINAL.finditer(text):
        if not _doubted(match, text):
            yield from _letters(match, text)


def _declared(text: str) -> Iterator[str]:
    for pattern in DECLARED:
        for match in pattern.finditer(text):
            if not _doubted(match, text):
                yield from _letters(match, text)
    for line in text.splitlines():
        if alone := ALONE.fullmatch(line):
            yield alone["letter"].upper()


def _doubted(match: re.Match[str], text: str) -> bool:
    """Whether the declaration, or its clause before it, is negated or hypothetical."""
    clause = re.split(r"[.!?;,\n]", text[: match.start()])[-1]
    return bool(DOUBT.search(clause) or DOUBT.search(match[0]))


def _letters(match: re.Match[str], text: str) -> Iterator[str]:
    """The letter of a match, and another that is joined to it."""
    end = match.end("letter")
    behind = text[end:].strip(" .,;!\n") or (match["letter"] == "a" and end == len(text))
    if match["letter"].islower() and not match["open"] and behind:
        return  # "the answer is a dog", or the same cut off
    yield match["letter"].upper()
    if joined := JOINED.match(text, end):
        yield joined["other"]


def _verbatim(text: str, options: Sequence[str]) -> Iterator[str]:
    said = _words(text)
    for name, option in zip(LETTERS, options, strict=False):
        if said and said == _words(option):
            yield name


def _leading(text: str, options: Sequence[str]) -> Iterator[str]:
    words = [_words(option) for option in options]
    for line in text.splitlines():
        match = LEADING.match(line)
        if match is None:
            continue
        name, rest = match["bracketed"] or match["plain"], match["rest"]
        said, own = _words(rest), LETTERS.find(name.upper())
        repeats = 0 <= own < len(words) and said == words[own]
        if not repeats:
            if match["plain"] and not _marked(name, match["sign"], rest):
                continue
            if said in words:
                yield "?"  # the text of another option
        yield name.upper()
        if joined := JOINED.match(line, match.end("mark") - (match["sign"] == ",")):
            yield joined["other"]
        for other, option in zip(LETTERS, options, strict=False):  # the options repeated in one line
            if other != name.upper() and re.search(rf"(?<!\w){other}[).\]:]\s*{re.escape(option)}", rest, re.I):
                yield other


def _marked(name: str, sign: str, rest: str) -> bool:
    """Whether an unbracketed letter at the start of a line is an answer; not "A man", "a. m.", "B.C."."""
    if sign.isspace():
        return name.isupper() and rest.lower().startswith(("because ", "since "))
    return not rest[:1].strip() and (name.isupper() or sign == ")")


def _words(text: str) -> str:
    """For comparison word for word: case, spaces, quotes and a full stop at the end do not count."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(" .\"'")
