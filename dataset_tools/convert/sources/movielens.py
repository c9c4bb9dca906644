"""Source `movielens`: ml-100k, ml-1m, ml-10m and ml-20m, 25m, 32m, their folders or zips, and the
copies of them that RecBole offers as atomic files.

Domains are of genres (Berkovsky et al., RecSys 2007): the majority of a film's genres decides
between thrill and heart, the first one listed on a tie.
"""

import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from dataset_tools.convert.engine import Engine, quoted
from dataset_tools.convert.intake import categories_of, take_events, take_items
from dataset_tools.convert.lines import Layout, separated
from dataset_tools.convert.sources.recbole import CATEGORIES, TITLES, YEARS, load_atomic
from recbole_tema.errors import DataError

GENRES_100K = (
    ("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime")
    + ("Documentary", "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance")
    + ("Sci-Fi", "Thriller", "War", "Western")
)
THRILL_GENRES = frozenset(
    ["Action", "Adventure", "Crime", "Film-Noir", "Horror"]
    + ["Mystery", "Sci-Fi", "Thriller", "War", "Western"]
)


class Release(NamedTuple):
    """Files of one release and their shape."""

    ratings: str
    movies: str
    delimiter: tuple[str, str]  # of ratings, of movies
    quote: str
    films: tuple[str, ...] | None  # columns of movies; None where both files have a header
    encoding: str


FILM, FLAGS = ("movieId", "title"), tuple(f"g{i}" for i in range(len(GENRES_100K)))
FILM_100K = (*FILM, "released", "video", "url", *FLAGS)
RELEASES = (
    Release("u.data", "u.item", ("\t", "|"), "", FILM_100K, "latin-1"),
    Release("ratings.dat", "movies.dat", ("::", "::"), "", (*FILM, "genres"), "latin-1"),
    Release("ratings.csv", "movies.csv", (",", ","), '"', None, "utf-8"),
)
NO_GENRES = ("", "unknown", "(no genres listed)", "(no", "genres", "listed)")
RATING_COLUMNS = ("userId", "movieId", "rating", "timestamp")


def film_domain(genres: Sequence[str]) -> str:
    """The domain that most of `genres` belong to; on a tie the first one's.

    >>> film_domain(["Crime", "Drama", "Thriller"]), film_domain(["Romance", "War"])
    ('thrill', 'heart')
    """
    thrill = [genre in THRILL_GENRES for genre in genres]
    majority = 2 * sum(thrill) - len(thrill)
    return "thrill" if majority > 0 or (majority == 0 and any(thrill[:1])) else "heart"


def read(engine: Engine, place: Path) -> None:
    """Fill `raw_events` and `raw_items` from a release's folder or zip, or RecBole's copy of one.

    Raises:
        DataError: there is no such place, no known release in it, or a file cannot be read.
    """
    if not place.exists():
        raise DataError(f"{place}: no such folder or zip")
    if (place / f"{place.name}.inter").is_file() and (place / f"{place.name}.item").is_file():
        _read_copy(engine, place)
        return
    release, ratings, movies = find(place, engine.folder)
    layout = Layout(
        "table", release.delimiter[1], release.quote, release.films, encoding=release.encoding
    )
    found = separated(engine, movies, "loaded", layout)
    genres = "string_split(genres, '|')"
    if release.ratings == "u.data":
        pairs = zip(FLAGS, GENRES_100K, strict=True)
        flags = ", ".join(f"CASE WHEN {flag} = '1' THEN {quoted(g)} END" for flag, g in pairs)
        genres = f"list_filter([{flags}], lambda g: g IS NOT NULL)"
    _need(movies, found, release.films or (*FILM, "genres"))
    _take_films(
        engine,
        movies,
        item='"movieId"',
        genres=genres,
        title=r"trim(regexp_replace(title, '\s*\(\d{4}\)\s*$', ''))",
        year=r"regexp_extract(title, '\((\d{4})\)\s*$', 1)",
    )
    names = release.films and RATING_COLUMNS
    layout = replace(layout, delimiter=release.delimiter[0], names=names)
    found = separated(engine, ratings, "loaded", layout)
    _need(ratings, found, RATING_COLUMNS)
    ours_of = ("user_id", "item_id", "rating", "timestamp")
    columns: dict[str, str | None] = {
        ours: f'"{name}"' for ours, name in zip(ours_of, RATING_COLUMNS, strict=True)
    }
    _take_ratings(engine, ratings, columns)


def _need(path: Path, found: list[str], names: Iterable[str]) -> None:
    """Raise a DataError unless a file has all columns of `names`."""
    lacking = [name for name in names if name not in found]
    if lacking:
        raise DataError(f"{path}, line 1: no column '{lacking[0]}' (found: {', '.join(found)})")


def _read_copy(engine: Engine, folder: Path) -> None:
    """RecBole's own copy: atomic files, genres as a `token_seq`."""
    path = folder / f"{folder.name}.item"
    found = load_atomic(engine, path, "loaded")
    columns = [
        next((f'"{name}"' for name in names if name in found), None)
        for names in (CATEGORIES, TITLES, YEARS)
    ]
    if columns[0] is None:
        raise DataError(
            f"{path}, line 1: no column of genres (found: {', '.join(found)}; known: "
            f"{', '.join(CATEGORIES)})"
        )
    genres = f"string_split_regex(trim({columns[0]}), '\\s+')"
    title, year = columns[1:]
    _take_films(engine, path, item='"item_id"', genres=genres, title=title, year=year)
    path = folder / f"{folder.name}.inter"
    found = load_atomic(engine, path, "loaded", needed=("user_id", "item_id", "timestamp"))
    names = ("user_id", "item_id", "timestamp", "rating")
    _take_ratings(engine, path, {name: f'"{name}"' for name in names if name in found})


def _take_films(
    engine: Engine, path: Path, *, item: str, genres: str, title: str | None, year: str | None
) -> None:
    """Move the films in `loaded` to `raw_items`, and make `domain_of` (id, genre_domain).

    Args:
        genres: SQL of a list; the other arguments are SQL too, of a text, or None.
    """
    known = f"list_filter({genres}, lambda g: g NOT IN ({', '.join(map(quoted, NO_GENRES))}))"
    engine.sql.create_function("film_domain", film_domain, ["VARCHAR[]"], "VARCHAR")
    engine.do(
        "CREATE OR REPLACE TABLE films AS SELECT *, film_domain(g) AS genre_domain "
        f"FROM (SELECT *, coalesce({known}, []) AS g FROM loaded);"
        "CREATE OR REPLACE TABLE domain_of AS "
        f"SELECT {item} AS id, first(genre_domain ORDER BY _number) AS genre_domain "
        f"FROM films GROUP BY {item};"
        # A film that stands twice has one domain.
        "UPDATE films SET genre_domain = domain_of.genre_domain FROM domain_of "
        f"WHERE id = films.{item}"
    )
    columns = {"item_id": item, "domain": "genre_domain", "category": categories_of("g")}
    take_items(engine, "films", path, columns | {"title": title, "year": year})


def _take_ratings(engine: Engine, path: Path, columns: dict[str, str | None]) -> None:
    """Move the ratings in `loaded` to `raw_events`, with the domains of their films."""
    engine.do(
        "CREATE OR REPLACE TABLE joined AS SELECT l.*, genre_domain FROM loaded l "
        f"LEFT JOIN domain_of ON id = {columns['item_id']}"
    )
    engine.drop("loaded")
    take_events(engine, "joined", path, columns | {"domain": "genre_domain"})


def find(place: Path, work: Path) -> tuple[Release, Path, Path]:
    """The release in a folder or zip, and its two files; those of a zip are unpacked to `work`.

    Raises:
        DataError: none is there, or the zip is broken.
    """
    if place.is_dir():
        for release in RELEASES:
            for folder in (place, *sorted(p for p in place.iterdir() if p.is_dir())):
                ratings, movies = folder / release.ratings, folder / release.movies
                if ratings.is_file() and movies.is_file():
                    return release, ratings, movies
        raise DataError(f"{place}: no release of MovieLens in it; it has {_wanted()}")
    try:
        with zipfile.ZipFile(place) as packed:
            names = {Path(name).name: name for name in packed.namelist()}
            for release in RELEASES:
                if release.ratings in names and release.movies in names:
                    files = []
                    for name in (release.ratings, release.movies):
                        path = work / name
                        with packed.open(names[name]) as source, open(path, "wb") as target:
                            while block := source.read(1 << 20):
                                target.write(block)
                        files.append(path)
                    return release, files[0], files[1]
    except zipfile.BadZipFile as error:
        raise DataError(f"{place}: {error}; fetch it again") from None
    raise DataError(f"{place}: no release of MovieLens in it; it has {_wanted()}")


def _wanted() -> str:
    return " or ".join(f"{release.ratings} and {release.movies}" for release in RELEASES)
