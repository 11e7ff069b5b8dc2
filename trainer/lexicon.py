"""A bilingual lexicon: lines of english<TAB>korean."""

import unicodedata
from pathlib import Path

from data_tools.errors import UserError
from trainer.pieces import Pieces


def read_lexicon(path: Path) -> list[tuple[str, str]]:
    """The distinct (english, korean) pairs of a file of `english<TAB>korean` lines, lower-cased, in the file's order.

    Raises: UserError naming the file and the line.
    """
    try:
        lines = unicodedata.normalize("NFC", path.read_text(encoding="utf-8-sig")).split("\n")  # as the vocabularies' pieces are
    except FileNotFoundError:
        raise UserError(f"lexicon {path}: no such file; expected lines of english<TAB>korean") from None
    except UnicodeDecodeError:
        raise UserError(f"lexicon {path}: not a UTF-8 text file; expected lines of english<TAB>korean") from None
    except OSError as error:
        raise UserError(f"lexicon {path}: cannot be read ({error.strerror}); expected lines of english<TAB>korean") from None
    pairs: dict[tuple[str, str], None] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        sides = [side.strip().lower() for side in line.split("\t")]
        if len(sides) != 2 or not all(sides):
            raise UserError(f"lexicon {path}, line {number}: expected english<TAB>korean, found {line[:60]!r}; fix or remove the line")
        pairs[sides[0], sides[1]] = None
    if not pairs:
        raise UserError(f"lexicon {path}: empty; expected lines of english<TAB>korean")
    return list(pairs)


def translated_pieces(pairs: list[tuple[str, str]], english: Pieces, korean: Pieces) -> dict[int, list[int]]:
    """Korean piece -> its English pieces, of the pairs whose sides are single pieces."""
    found: dict[int, list[int]] = {}
    for english_word, korean_word in pairs:
        target = english.find_word(english_word)
        if target is None:
            continue
        for initial in (True, False):
            piece = korean.ids.get((initial, korean_word))
            if piece is not None and target not in found.setdefault(piece, []):
                found[piece].append(target)
    return found
