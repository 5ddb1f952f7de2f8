"""The frames of stories about lengths, supplies, work, ages, prices and two people; `patterns.py` says how they are written.

Knows nothing about numbers or answers.
"""

from __future__ import annotations

from mmedge.tasks.embedded.frames import _NOW, _PERIOD, _SHARED, _THEN, Frames

# Something long.
LENGTH: Frames = {
    "state": (
        "{A's} {o} <is|was|measures|measured> {n} {T} [long].",
        "A {o} <is|was> {n} {T} long.",
        "{A} <has|had|bought> a {o} <of {n} {T}|that is {n} {T} long>.",
        "{A} <has|had|bought> {n} {T} of {o}.",
    ),
    "product": (
        "{A} <made|joined|got> one {o} of {b} pieces of {n} {T} <each|>.",
        "{A} <tied|put> together {b} <pieces of {o}|{o}s> of {n} {T} [each].",
    ),
    "sum": (
        "A {o} of {n} {T} <is joined to|is tied to|is added to> one of {m} {T}.",
        "{A} <has|bought> {n} {T} of {x} {o} and {m} {T} of {y} {o}.",
    ),
    "more_than": (
        "{B's} {o} is {n} {T} long. {A's} {o} is {m} {T} longer.",
        "{A's} {o} is {m} {T} longer than the {o} of {B}, which is {n} {T} long.",
    ),
    "fewer_than": (
        "{B's} {o} is {n} {T} long. {A's} {o} is {m} {T} shorter.",
        "{A's} {o} is {m} {T} shorter than the {o} of {B}, which is {n} {T} long.",
    ),
    "times_as_many": (
        "{B's} {o} is {n} {T} long. {A's} {o} is {b*} as long.",
        "{A's} {o} is {b*} as long as the {o} of {B}, which is {n} {T} long.",
    ),
    "gain": (
        "{A} <tied|joined|added> another {e} {T} to it.",
        _THEN + " {A} made it {e} {T} longer.",
        _THEN + " {A} <tied|joined|added> {e} {T} to it.",
    ),
    "loss": (
        "{A} <cut|cuts|took|trimmed> {e} {T} off.",
        "{A} <cut|cuts> off {e} {T} [{W}].",
        "{A} <used|needed|sold> {e} {T} of it.",
        _THEN + " {e} {T} of it were <used|cut off|lost>.",
        "{A} <gave|sold> {e} {T} of it to {Bo}.",
    ),
    "halved": ("{A} <cut off|used|sold|gave away> half of it.", "<Then|Later> {A} <used|sold|lost> half of it."),
    "count": ("How long is <it|the {o}> " + _NOW + "?", "How many {T} <of {o} are there|long is it> " + _NOW + "?"),
    "left": ("How many {T} <are left|remain|of {o} are left|are left over>?", "How long is the <rest|remaining piece>?"),
    "total": ("How many {T} is that <in all|in total|altogether>?", "How long <is it|is that> <in all|in total|altogether>?"),
    "share": (
        "{A} <cuts|divides> it into {q} equal <pieces|parts>. How long is each <piece|part|one>?",
        "It is <cut|divided> into {q} equal pieces. How many {T} long is <each|one> piece?",
    ),
    "pack": (
        "{A} <cuts|divides> it into pieces of {q} {T}. How many pieces <are there|does {A} get>?",
        "How many pieces of {q} {T} <can {A} cut|does that make>?",
    ),
    "price": ("One {t} costs {q$}. How much does <all of it|the {o}> cost?", "It costs {q$} {a t}. What is the price?"),
    "more": (
        "{D's} {o} is {q} {T} long. How many {T} <longer is the {o} of {A}|shorter is it>?",
        "{D} has <only|just> {q} {T}. How <much longer is the {o} of {A}|many {T} less is that>?",
    ),
    "fewer": ("{D's} {o} is {q} {T} long. How <much longer is it|many {T} shorter is the {o} of {A}>?",),
    "gained": (
        "{A} needs {q} {T}. How many [more] {T} <are missing|are still missing|does {A} still need>?",
        "{A} wants to have {q} {T}. How many [more] {T} <are missing|does {A} still need>?",
    ),
    "lost": ("<Now|Today> it is <only {q}|{q}> {T} long. How many {T} <are gone|were cut off|are missing>?",),
}

# A supply of something that is measured.
STUFF: Frames = {
    "state": (
        "{A} <has|had|bought|got> {n} {T} of {s}.",
        "There <are|were> {n} {T} of {s} in {A's} {c}.",
        "{A's} {c} <holds|held|contains> {n} {T} of {s}.",
    ),
    "product": (
        "{A} <has|had|bought|filled> {b} {C} with {n} {T} of {s} in each.",
        "There <are|were> {b} {C}. <Each|Every one|Each {c}> <holds|contains> {n} {T} of {s}.",
        "{A} <gets|buys|bought> {n} {T} of {s} <a|every|each> <day|week> for {b} <days|weeks>.",
    ),
    "sum": (
        "{A} <bought|got|mixed> {n} {T} of {s} {d1} and {m} {T} {d2}.",
        "There <are|were> {n} {T} of {s} in one {c} and {m} {T} in <another|the other>.",
    ),
    "more_than": ("{B} <has|got|bought> {n} {T} of {s}, and {A} <has|got|bought> {m} {T} more [than {B}].",),
    "fewer_than": ("{B} <has|got|bought> {n} {T} of {s}, and {A} <has|got|bought> {m} {T} less [than {B}].",),
    "times_as_many": ("{B} <has|got|bought> {n} {T} of {s}, and {A} <has|got|bought> {b*} as much <as {B}|>.",),
    "gain": (
        "{A} <bought|got|added> <another {e} {T}|{e} more {T}>.",
        _THEN + " {A} <bought|got|added> {e} {T} more.",
        "{B} <gave|brought> {Ao} {e} more {T}.",
    ),
    "loss": (
        "{A} <used|sold|spilled|gave away> {e} {T} [of it].",
        _THEN + " {A} <used|sold|spilled|lost> {e} {T}.",
        "{A} <used|needed> {e} {T} for <soup|the plants|a cake|the neighbors>.",
        "{A} <gave|sold|brought> {Bo} {e} {T}.",
        "{e} {T} of it were <used|sold|lost>.",
    ),
    "halved": ("{A} <used|sold|spilled|gave away> half of it.", "<Then|Later> half of it was <used|sold|lost>."),
    "count": (
        "How many {T} of {s} does {A} have " + _NOW + "?",
        "How much {s} is there " + _NOW + "?",
        "How many {T} are there " + _NOW + "?",
    ),
    "left": (
        "How many {T} [of {s}] <are left|remain|are left over|does {A} still have>?",
        "How much {s} <is left|remains|does {A} have left>?",
    ),
    "total": ("How many {T} [of {s}] is that <in all|in total|altogether>?", "How much {s} is that <in all|in total|altogether>?"),
    "share": (
        "{A} <pours|puts|divides> it into {q} {C}, the same amount in each. How many {T} are in <each|one> {c}?",
        "{q} {F} share it " + _SHARED + ". How many {T} does each {f} get?",
    ),
    "pack": (
        "{A} <pours|puts> it into {C} of {q} {T}. How many {C} <does {A} need|are there|can {A} fill>?",
        "{A} <uses|needs> {q} {T} <a day|each day|every day>. {how long} does it last?",
        "A <cake|meal|batch> <needs|takes> {q} {T}. <How many of them|How many> can {A} make?",
    ),
    "price": (
        "<Each|One|Every> {t} costs {q$}. How much does all of it cost?",
        "{A} sells it for {q$} {a t}. How much money does {A} get?",
    ),
    "more": (
        "{D} has {q} {T}. How many {T} more does {A} have <than {D}|>?",
        "{D} has {q} {T}. How much more {s} does {A} have <than {D}|>?",
        "{D} has <only|just> {q} {T}. How much less <is that|does {D} have>?",
    ),
    "gained": (
        "{A} needs {q} {T}. How many [more] {T} <are missing|does {A} need|does {A} still need>?",
        "{A} <wants|would like> to have {q} {T}. How many [more] {T} <are missing|does {A} need>?",
    ),
    "lost": ("<Now|Today|In the end,> <only {q}|{q}> {T} are left. How many {T} <are gone|were used|did {A} use>?",),
}

# What somebody does, and in what time.
WORK: Frames = {
    "state": ("{A} <has to|must|wants to|will> {v} {n} {T}.", "{A} <plans|hopes> to {v} {n} {T}."),
    "sum": (
        "{A} {V} {n} {T} {d1} and {m} <{T}|more> {d2}.",
        "{A} {V} {n} {T} {d1}. <Then|Later> {A} {V} {m} <{T}|more> {d2}.",
        "{A} {V} {n} {T}, and {B} {V} {m}.",
    ),
    "rate": (
        "{A} {vs} {n} {T} " + _PERIOD + ".",
        "In one {p} {A} <can {v}|{vs}> {n} {T}.",
        "Each {p} {A} {vs} {n} {T}.",
    ),
    "product": (
        "{A} {V} {n} {T} " + _PERIOD + " for {b} {ps}.",
        "For {b} {ps} {A} {V} {n} {T} " + _PERIOD + ".",
    ),
    "more_than": (
        "{B} {V} {n} {T}, and {A} {V} {m} more <than {B}|>.",
        "{B} {V} {n} {T}. {A} {V} {m} {T} more.",
        "{A} {V} {m} {T} more than {B}, who {V} {n}.",
    ),
    "fewer_than": ("{B} {V} {n} {T}, and {A} {V} {m} fewer <than {B}|>.", "{B} {V} {n} {T}. {A} {V} {m} {T} <less|fewer>."),
    "times_as_many": ("{B} {V} {n} {T}, and {A} {V} {b*} as many <as {B}|>.", "{B} {V} {n} {T}. {A} {V} {b*} as many {T}."),
    "gain": ("{W,} {A} {V} {e} more.", "<Then|Later> {A} {V} another {e} {T}."),
    "done": (
        "{A} already {V} {e} of {them}.",
        "{A} {V} {e} {T} {W}.",
        "{W,} {A} {V} {e} {T}.",
        "{e} of {them} are <done|done already>.",
    ),
    "over": (
        "How many {T} <does|will|can> {A} {v} in {q} {ps}?",
        "How many {T} <is that|will it be> <in|after> {q} {ps}?",
        "{A} goes on for {q} {ps}. How many {T} is that <in all|in total|altogether>?",
    ),
    "reach": (
        "How many {ps} does {A} need <for {q} {T}|to {v} {q} {T}>?",
        "<After|In> how many {ps} will {A} {v} {q} {T} in all?",
        "How long does it take {Ao} to {v} {q} {T}?",
    ),
    "total": (
        "How many {T} <is that|was it> <in all|in total|altogether>?",
        "How many {T} did {A} {v} <in all|in total|altogether>?",
        "What is the total number of {T}?",
    ),
    "count": (
        "How many {T} did {A} {v} [in the end]?",
        "<Find|Say> how many {T} {A} {V}.",
        "What is the number of {T} that {A} {V}?",
    ),
    "left": (
        "How many [more] {T} <are left|remain|does {A} still have to {v}|are still to be done>?",
        "How many {T} must {A} <still {v}|{v} now>?",
    ),
    "pack": (
        "{A} {vs} {q} {T} " + _PERIOD + ". How many {ps} does {A} need?",
        "How many {ps} does it take at {q} {T} " + _PERIOD + "?",
    ),
    "share": (
        "{A} has {q} {ps} <for it|for that>. How many {T} [is that] " + _PERIOD + "?",
        "{A} wants to be done in {q} {ps}. How many {T} must {A} {v} " + _PERIOD + "?",
    ),
    "more": (
        "{D} {V} {q} {T}. How many more {T} did {A} {v} <than {D}|>?",
        "How many {T} more than {D} did {A} {v}, if {D} {V} {q}?",
    ),
    "gained": (
        "{A} wants to {v} {q} {T}. How many more {T} <is that|are left>?",
        "The goal is {q} {T}. How many [more] {T} <are missing|are still missing>?",
    ),
}

# How old somebody is.
AGE: Frames = {
    "state": ("{B} is {n} [years old].", "{B} <turned|became|was> {n} <this year|last month>."),
    "older": ("{A} is {e} years older [than {B}].", "{B's} <cousin|friend|neighbor> {A} is {e} years older."),
    "younger": ("{A} is {e} years younger [than {B}].", "{B's} <cousin|friend|neighbor> {A} is {e} years younger."),
    "times_older": ("{A} is {e*} as old [as {B}].", "{B's} <cousin|friend|neighbor> {A} is {e*} as old."),
    "half_as_old": ("{A} is half as old [as {B}].", "{B's} <cousin|friend|neighbor> {A} is half as old."),
    "age": ("How old is {A} [now]?", "What is {A's} age?", "How many years old is {A}?"),
    "in_years": ("How old will {A} be in {q} years?", "What will {A's} age be <in {q} years|{q} years from now>?"),
    "years_ago": ("How old was {A} {q} years ago?", "What was {A's} age {q} years ago?"),
    "in_years_alone": ("How old will {B} be in {q} years?", "What will {B's} age be <in {q} years|{q} years from now>?"),
    "years_ago_alone": ("How old was {B} {q} years ago?", "What was {B's} age {q} years ago?"),
    "older_than": ("{D} is {q} [years old]. How many years older is {B} <than {D}|>?", "{D} is {q}. How much older is {B}?"),
    "younger_than": ("{D} is {q} [years old]. How many years younger is {B} <than {D}|>?", "{D} is {q}. How much younger is {B}?"),
}

# So many in each, and then so many of those: `T` in `C`, or dollars for `T`.
UNIT: Frames = {
    "each": (
        "<Each|Every|One> {c} <holds|contains|has> {n} {T}.",
        "There are {n} {T} {in} <each|every> {c}.",
        "{A} <needs|uses|has> {n} {T} for <each|every|one> {c}.",
        "{T} come in {C} of {n}.",
        "It takes {n} {T} to fill <a|one|each> {c}.",
    ),
    "many": (
        "How many {T} are {in} {q} {C}?",
        "How many {T} do {q} {C} <hold|contain|have>?",
        "How many {T} <are needed|does {A} need> for {q} {C}?",
        "{A} <has|fills|buys> {q} {C}. How many {T} is that?",
        "How many {T} <is that|are there> {in} {q} <{C}|such {C}>?",
    ),
    "fit": (
        "{A} has {q} {T}. How many {C} <can {A} fill|does {A} need|is that>?",
        "How many {C} <are needed|does {A} need> for {q} {T}?",
        "How many {C} can {A} <fill|make> with {q} {T}?",
        "There are {q} {T}. How many {C} is that?",
    ),
}
PRICE: Frames = {
    "each": (
        "<{a t}|one {t}|each {t}|every {t}> costs {n$}.",
        "{A} <pays|paid> {n$} for <each|every|one> {t}.",
        "The price of <{a t}|one {t}|each {t}> is {n$}.",
        "{T} <cost|are> {n$} <each|apiece>.",
    ),
    "many": (
        "How much do {q} {T} cost?",
        "How much <does {A} pay|must {A} pay|is it> for {q} {T}?",
        "{A} buys {q} <{T}|of them>. How much <is that|does {A} pay|does {A} spend>?",
        "What is the price of {q} {T}?",
        "What do {q} of them cost?",
    ),
    "fit": (
        "How many {T} can {A} buy <for|with> {q$}?",
        "{A} has {q$}. How many {T} can {A} <buy|get|afford>?",
        "{A} <paid|spent> {q$}. How many {T} did {A} <buy|get>?",
    ),
}

# Two people, or two kinds, of whom each has so many.
PAIR: Frames = {
    "two": (
        "{A} <has|had|GAIN> {n} {T}, and {B} <has|had|GAIN> {m}.",
        "{A} <has|had|GAIN> {n} {T}. {B} <has|had|GAIN> {m} [{T}].",
        "{A} <has|had> {n} {T} and {B} <has|had> {m} {T}.",
    ),
    "two_more": (
        "{A} <has|had|GAIN> {n} {T}. {B} <has|had|GAIN> {m} more <than {A}|>.",
        "{A} <has|had|GAIN> {n} {T}, and {B} <has|had|GAIN> {m} {T} more.",
    ),
    "two_fewer": (
        "{A} <has|had|GAIN> {n} {T}. {B} <has|had|GAIN> {m} fewer <than {A}|>.",
        "{A} <has|had|GAIN> {n} {T}, and {B} <has|had|GAIN> {m} {T} <fewer|less>.",
    ),
    "two_times": (
        "{A} <has|had|GAIN> {n} {T}. {B} <has|had|GAIN> {b*} as many [{T}] <as {A}|>.",
        "{A} <has|had|GAIN> {n} {T}, and {B} <has|had|GAIN> {b*} as many.",
    ),
    "together": (
        "How many {T} do they have <together|in all|altogether|in total>?",
        "{many} <are there|is that|do they have> <together|in all|altogether|in total>?",
        "How many {T} do {A} and {B} have <together|in all|altogether>?",
        "What is the total number of {T}?",
    ),
    "difference": (
        "How many more {T} does {A} have <than {B}|>?",
        "How many fewer {T} does {B} have <than {A}|>?",
        "{many} more does {A} have?",
        "What is the difference?",
        "By how many {T} <is {A} ahead|does {A} have more>?",
    ),
    "difference_back": (
        "How many more {T} does {B} have <than {A}|>?",
        "How many fewer {T} does {A} have <than {B}|>?",
        "By how many {T} <is {B} ahead|does {B} have more>?",
    ),
}

# A whole of which a part is named.
PART: Frames = {
    "whole": (
        "There are {n} {T} <here|in all>.",
        "{A} <has|counted|saw> {n} {T}.",
    ),
    "whole_part": (
        "<Of|Out of> {n} {T} {m} are {x}.",
        "{m} of {n} {T} are {x}.",
        "{A} <has|counted|saw> {n} {T}, {m} of which are {x}.",
    ),
    "part": ("{e} of them are {x}.", "{e} are {x}, the <rest|others> are {y}.", "<Among them|Of these> {e} are {x}."),
    "rest": ("How many [{T}] are {y}?", "How many of {them} are {y}?", "How many [{T}] are not {x}?"),
}

# What somebody pays.
BILL: Frames = {
    "product": (
        "{A} <bought|buys|ordered> {b} {T} <at|for> {n$} <each|apiece>.",
        "<Each|One|Every> {t} costs {n$}. {A} <bought|buys> {b} <of them|{T}>.",
        "{A} paid {n$} for each of {b} {T}.",
    ),
    "sum": (
        "{A} <paid|pays> {n$} for {a t} and {m$} for {a u}.",
        "{A} <bought|buys> {a t} for {n$} and {a u} for {m$}.",
        "{a t} costs {n$}, and {a u} costs {m$}. {A} <bought|buys> both.",
    ),
    "gain": (
        "{A} <also bought|also buys> {a u} for {e$}.",
        "{A} <paid|pays> {e$} for {a u}, too.",
        "<The bag|Delivery|The bus> costs {e$} <more|extra>.",
    ),
    "off": ("The shop takes {e$} off.", "{A} gets {e$} <off|back>.", "{B} <paid|pays> {e$} of it."),
    "count": ("How much does {A} <pay|have to pay|spend>?", "How much <is it|is the bill> in the end?"),
    "total": (
        "How much does {A} <pay|spend|have to pay> <in all|in total|altogether>?",
        "What is the total?",
        "How much <is that|is it|is the bill> <in all|altogether|>?",
    ),
    "change": (
        "{A} <pays|paid> with {q$}. How much change does {A} get?",
        "How much change <does {A} get|is that> from {q$}?",
        "{A} had {q$} <before|at first>. How much is left?",
    ),
    "share": (
        "{q} {F} <share|split> the bill " + _SHARED + ". How much does each {f} pay?",
        "{A} <shares|splits> the bill " + _SHARED + " with others, so that {q} people pay. How much does each pay?",
    ),
}
