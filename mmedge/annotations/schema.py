"""The schema of the store, as numbered migrations: a store of any earlier version is brought up to date when it is opened.

A released migration is never changed; new ones are appended.
"""

from __future__ import annotations

WHOLE, ACCEPTED, IDENTICAL = "whole", "accepted", "identical"  # outcomes of whole texts: not settled yet, taken, said before

MIGRATIONS = (
    """
    CREATE TABLE annotations (
        example_id TEXT NOT NULL,
        kind TEXT NOT NULL CHECK (kind IN ('cot', 'evaluation')),
        sample INTEGER NOT NULL,
        evaluation INTEGER NOT NULL,
        text TEXT NOT NULL,
        verdict TEXT,
        teacher TEXT NOT NULL,
        origin TEXT NOT NULL,
        PRIMARY KEY (example_id, kind, sample, evaluation)
    ) WITHOUT ROWID;
    CREATE TABLE collections (fingerprint TEXT PRIMARY KEY, finished INTEGER NOT NULL);
    """,
    """
    CREATE TABLE collectors (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        host TEXT NOT NULL,
        process TEXT NOT NULL,
        started REAL NOT NULL,
        seen REAL NOT NULL,
        ended REAL,
        reserved_requests INTEGER NOT NULL DEFAULT 0,
        reserved_cost REAL NOT NULL DEFAULT 0
    );
    CREATE TABLE subjects (
        number INTEGER PRIMARY KEY,
        example_id TEXT NOT NULL,
        kind TEXT NOT NULL CHECK (kind IN ('cot', 'evaluation')),
        sample INTEGER NOT NULL,
        wanted INTEGER NOT NULL,
        draws INTEGER NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('open', 'done', 'given up')),
        collector INTEGER,
        UNIQUE (example_id, kind, sample)
    );
    CREATE INDEX free_subjects ON subjects (number) WHERE state = 'open' AND collector IS NULL;
    CREATE TABLE configurations (id INTEGER PRIMARY KEY, content TEXT NOT NULL UNIQUE);
    CREATE TABLE requests (
        id INTEGER PRIMARY KEY,
        collector INTEGER NOT NULL,
        configuration INTEGER NOT NULL,
        example_id TEXT NOT NULL,
        kind TEXT NOT NULL,
        sample INTEGER NOT NULL,
        first_draw INTEGER NOT NULL,
        wanted INTEGER NOT NULL,
        seed INTEGER NOT NULL,
        prompt_sha256 TEXT NOT NULL,
        started REAL NOT NULL,
        seconds REAL NOT NULL,
        status TEXT NOT NULL,
        detail TEXT NOT NULL,
        prompt_tokens INTEGER NOT NULL,
        completion_tokens INTEGER NOT NULL,
        tokens_estimated INTEGER NOT NULL,
        cost REAL NOT NULL
    );
    CREATE TABLE responses (
        example_id TEXT NOT NULL,
        kind TEXT NOT NULL,
        sample INTEGER NOT NULL,
        draw INTEGER NOT NULL,
        request INTEGER NOT NULL,
        finish TEXT NOT NULL,
        outcome TEXT NOT NULL,
        text TEXT NOT NULL,
        PRIMARY KEY (example_id, kind, sample, draw)
    ) WITHOUT ROWID;
    CREATE TABLE totals (
        kind TEXT NOT NULL,
        status TEXT NOT NULL,
        requests INTEGER NOT NULL,
        prompt_tokens INTEGER NOT NULL,
        completion_tokens INTEGER NOT NULL,
        tokens_estimated INTEGER NOT NULL,
        cost REAL NOT NULL,
        seconds REAL NOT NULL,
        PRIMARY KEY (kind, status)
    ) WITHOUT ROWID;
    CREATE TABLE outcomes (
        kind TEXT NOT NULL, outcome TEXT NOT NULL, count INTEGER NOT NULL, PRIMARY KEY (kind, outcome)
    ) WITHOUT ROWID;
    CREATE TABLE stale (example_id TEXT PRIMARY KEY) WITHOUT ROWID;
    CREATE TABLE summaries (example_id TEXT PRIMARY KEY, content TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE readings (key TEXT PRIMARY KEY);
    INSERT INTO stale SELECT DISTINCT example_id FROM annotations;
    """,
    """
    CREATE TABLE decisions (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        example_id TEXT NOT NULL,
        kind TEXT NOT NULL CHECK (kind IN ('question', 'cot', 'evaluation')),
        sample INTEGER NOT NULL,
        evaluation INTEGER NOT NULL,
        what TEXT NOT NULL CHECK (what IN ('accept', 'mend', 'drop', 'undo')),
        question TEXT,
        label TEXT,
        text TEXT,
        verdict TEXT,
        who TEXT NOT NULL,
        time REAL NOT NULL
    );
    """,
)
