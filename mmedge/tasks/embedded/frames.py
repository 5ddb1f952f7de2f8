"""The frames of stories about goods, crowds and money, by what a sentence means; `patterns.py` says how they are written.

Knows nothing about numbers or answers.
"""

from __future__ import annotations

_EACH = "<each|every one|every {c}|each {c}>"
_PERIOD = "<{a p}|every {p}|each {p}>"
_SHARED = "<equally|fairly|evenly>"
_THEN = "<Then|Later|After that,|Afterwards,|The next day,>"
_NOW = "<now|in the end|then>"

Frames = dict[str, tuple[str, ...]]

# One thing that one person has. A's number is asked, B has to do with it, D is somebody to compare with.
GOODS: Frames = {
    "state": (
        "{A} <has|had|owns|owned|kept> {n} {T}.",
        "{A} <started|began> <the day|the week> with {n} {T}.",
        "{A} <GAIN> {n} {T} {W}.",
        "{W,} {A} <GAIN> {n} {T}.",
        "There <are|were> {n} {T} <in|near> {A's} <house|garden|shop>.",
        "{A's} {c} <holds|contains|held> {n} {T}.",
        "{A} <has|had> a {c} with {n} {T}.",
        "{B} gave {Ao} {n} {T} {W}.",
        "{A} <counted|saw> {n} {T} {in} {A's} {c}.",
        "{n} {T} <belong|belonged> to {Ao}.",
    ),
    "product": (
        "{A} <has|had|bought|ordered|filled> {b} {C} with {n} {T} {in} <each|each of them|every {c}>.",
        "{A} <has|bought> {b} {C} of {n} {T} [each].",
        "There <are|were> {b} {C} <in|at> {A's} <house|shop|farm>. " + _EACH + " <holds|contains|has> {n} {T}.",
        "{A} put {n} {T} {in} <each of|every one of> {b} {C}.",
        "Each {c} <holds|contains> {n} {T}, and {A} <has|bought|filled> {b} {C}.",
        "{A} <GAIN> {n} {T} <a day|each day|every day> for {b} days.",
        "For {b} <days|weeks> {A} <GAIN> {n} {T} <a day|every day|each day>.",
        "{A} got {n} {T} from <each of|every one of> {b} {F}.",
        "{b} {F} <each gave {Ao} {n} {T}|gave {Ao} {n} {T} each>.",
        "{A} <arranged|put|has> {n} {T} in each of {b} <rows|lines>.",
        "{A} <has|made> {b} <rows|lines> of {n} {T}.",
    ),
    "sum": (
        "{A} <has|had|GAIN> {n} {x} {T} and {m} {y} <ones|{T}>.",
        "{A} <GAIN> {n} {T} {d1} and {m} <more|{T}> {d2}.",
        "{A} got {n} {T} from {Bo} and {m} <more|{T}> from {Eo}.",
        "{A} <has|had> {n} {T} <at home|in one {c}> and {m} <more|{T}> <at work|in another {c}>.",
        "<First|In the beginning> {A} <GAIN> {n} {T}, and <later|then|after that> {m} more.",
        "{B} gave {Ao} {n} {T}, and {E} gave {Ao} {m}.",
        "There <are|were> {n} {x} and {m} {y} {T} in {A's} {c}.",
    ),
    "more_than": (
        "{B} <has|had|GAIN> {n} {T}. {A} <has|had|GAIN> {m} more <than {B}|{T} than {B}>.",
        "{B} <has|had|GAIN> {n} {T}, and {A} <has|had|GAIN> {m} more.",
        "{A} <has|had> {m} more {T} than {B}, who has {n}.",
        "{B} <has|had> {n} {T}, <which is|that is> {m} fewer than {A} has.",
        "{A} <GAIN> {m} {T} more than {B}. {B} <GAIN> {n} {T}.",
    ),
    "fewer_than": (
        "{B} <has|had|GAIN> {n} {T}. {A} <has|had|GAIN> {m} <fewer|less> <than {B}|{T} than {B}>.",
        "{B} <has|had|GAIN> {n} {T}, and {A} <has|had|GAIN> {m} fewer.",
        "{A} <has|had> {m} fewer {T} than {B}, who has {n}.",
        "{B} <has|had> {n} {T}, <which is|that is> {m} more than {A} has.",
    ),
    "times_as_many": (
        "{B} <has|had|GAIN> {n} {T}. {A} <has|had|GAIN> {b*} as many <as {B}|{T} as {B}>.",
        "{B} <has|had|GAIN> {n} {T}, and {A} <has|had|GAIN> {b*} as many.",
        "{A} <has|had> {b*} as many {T} as {B}, who has {n}.",
        "{A} <has|had> {b*} the number of {T} that {B} has. {B} has {n}.",
    ),
    "half_as_many": (
        "{B} <has|had|GAIN> {n} {T}. {A} <has|had|GAIN> half as many <as {B}|{T} as {B}>.",
        "{B} <has|had|GAIN> {n} {T}, and {A} <has|had|GAIN> half as many.",
        "{A} <has|had> half as many {T} as {B}, who has {n}.",
    ),
    "undone_loss": (
        "{A} had some {T}. {A} <LOSS> {n} of them <and has {m} left|and now has {m}>.",
        "{A} <LOSS> {n} of {A's} {T}. Now {A} has {m} <left|{T}>.",
        "After {A} gave {n} {T} to {Bo}, {A} <had|still had> {m} <left|{T}>.",
    ),
    "undone_gain": (
        "{A} had some {T} and <GAIN> {m} more. Now {A} has {n} <in all|{T}>.",
        "After {B} gave {Ao} {m} {T}, {A} had {n} <in all|{T}>.",
        "{A} has {n} {T} now, but {m} of them {A} <GAIN> <only today|just now>.",
    ),
    "gain": (
        "{A} <GAIN> {+e} {W}.",
        "{W,} {A} <GAIN> {+e}.",
        _THEN + " {A} <GAIN> {+e}.",
        "{B} <gave|handed|brought|sent> {Ao} {+e}.",
        _THEN + " {B} <gave|handed|brought> {Ao} {+e}.",
        "{A} <got|received> {+e} from {Bo}.",
        "{A} <got|received> {+e} as a present.",
    ),
    "loss": (
        "{A} <LOSS> {-e}.",
        "{A} <LOSS> {-e} {W}.",
        _THEN + " {A} <LOSS> {-e}.",
        "{A} <gave|handed|passed|sold|sent> {-e} to {Bo}.",
        _THEN + " {A} <gave|handed|sold> {-e} to {Bo}.",
        "{A} <gave|handed|sold|sent> {Bo} {-e}.",
        "{B} <took|borrowed|bought> {-e} from {Ao}.",
        "{-e} <were lost|were stolen|went missing|were sold|were taken away>.",
        "<Unfortunately|Later>, {-e} <were lost|got lost|went missing>.",
    ),
    "halved": (
        "{A} <LOSS> half of {them}.",
        "{A} <gave|sold> half of {them} to {Bo}.",
        "<Then|Later> half of {them} were <sold|lost|gone>.",
    ),
    "count": (
        "{many} does {A} have " + _NOW + "?",
        "How many {T} does {A} <own|have> now?",
        "What is the number of {T} that {A} has " + _NOW + "?",
        "<Find|Say> how many {T} {A} has " + _NOW + ".",
        "How many {T} are there " + _NOW + "?",
        "How many {T} <will|does> {A} <end up with|finally have>?",
    ),
    "left": (
        "{many} does {A} <have left|still have|have left over>?",
        "{many} <are left|remain|are still there|are left over>?",
        "{many} are left for {Ao}?",
        "How many of {them} does {A} still have?",
        "What number of {T} <is left|remains>?",
    ),
    "total": (
        "{many} does {A} have <in all|in total|altogether>?",
        "{many} are there <in all|in total|altogether>?",
        "What is the total number of {T}?",
        "How many {T} is that <in all|in total|altogether>?",
        "{many} did {A} get <in all|in total|altogether>?",
    ),
    "first": (
        "{many} did {A} have <at first|before|at the start|in the beginning>?",
        "How many {T} were there <at first|before|in the beginning>?",
        "With how many {T} did {A} <start|begin>?",
    ),
    "share": (
        "{A} <shares|splits|divides> {them} " + _SHARED + " <among|between> {q} {F}. {many} does each {f} get?",
        "{A} <shared|divided> {them} " + _SHARED + " <among|between> {q} {F}. {many} did each <{f}|of them> <get|receive>?",
        "If {q} {F} <share|split|divide> {them} " + _SHARED + ", {many,} does each <{f}|one|of them> <get|receive>?",
        "{A} <puts|sorts|arranges> {them} into {q} equal {G}. {many} are in each {g}?",
        "{A} puts {them} into {q} {C}, the same number {in} each. {many} are {in} <each|one> {c}?",
        "{q} {F} get the same number of {them,}. {many} does each {f} get?",
    ),
    "pack": (
        "{A} <packs|puts|sorts> {them} into {C} of {q}. How many {C} <does {A} need|are there|does {A} fill>?",
        "If {q} {T} fit {in} one {c}, how many {C} <does {A} need|are needed|can {A} fill>?",
        "Each {c} <holds|has room for|takes> {q} {T}. How many {C} <does {A} need|are needed|can {A} fill>?",
        "How many {G} of {q} <{T}|each> can {A} make?",
        "{A} <uses|needs> {q} {T} <a day|every day>. {how long} do they last?",
        "{A} puts {them} in {G} of {q}. How many {G} are there?",
    ),
    "price": (
        "<Each|One|Every> {t} costs {q$}. How much do <all of them|they all> cost?",
        "{A} <sells|sold> {them} for {q$} each. How much money <does {A} get|does {A} make|is that>?",
        "At {q$} <each|apiece>, how much are all of the {T} worth?",
        "<Each|One|Every> {t} <costs|is worth> {q$}. What is the price of all <the {T}|of them>?",
        "<Each|One|Every> {t} weighs {q} grams. How <much|many grams> do they weigh together?",
    ),
    "more": (
        "{D} has {q} {T}. How many more {T} does {A} have than {D}?",
        "{D} <GAIN> {q} {T}. How many more {T} did {A} get <than {D}|compared with {Do}>?",
        "How many {T} more than {D} does {A} have, if {D} has {q}?",
        "{D} has {q} {T}. How many fewer {T} does {D} have <than {A}|compared with {Ao}>?",
        "{D} has <only|just> {q} {T}. What is the difference?",
    ),
    "fewer": (
        "{D} has {q} {T}. How many fewer {T} does {A} have than {D}?",
        "{D} has {q} {T}. How many more {T} <does {D} have|has {D} got> <than {A}|compared with {Ao}>?",
        "How many {T} fewer than {D} does {A} have, if {D} has {q}?",
    ),
    "gained": (
        "Now {A} <has|owns> {q} {T}. {many} did {A} <get|add> <in between|in the meantime>?",
        "<Later|At night|In the evening> {A} had {q} {T}. {many} did {A} get <in between|in the meantime>?",
        "{A} <wants|needs|would like> to have {q} {T}. How many more [{T}] does {A} need?",
        "{A} needs {q} {T} <in all|altogether>. How many <are missing|are still missing|more must {A} get>?",
        "After getting some more, {A} has {q} {T}. How many {T} <were added|are new|did {A} get>?",
    ),
    "lost": (
        "<Now|Today> {A} has <only {q}|{q}> [{T}] left. How many [{T}] <did {A} lose|are gone|are missing>?",
        "<Later|At night|In the evening> {A} had <only {q}|{q}> [{T}] left. How many [{T}] <did {A} lose|were gone>?",
        "After giving some away, {A} has {q} {T}. How many {T} did {A} give away?",
        "<Now|In the end,> {q} {T} are left. How many [{T}] <are gone|are missing|were taken>?",
        "<Later|At night> there were only {q} {T}. How many [{T}] <were gone|were missing>?",
    ),
}

# Those who are somewhere, come and go.
CROWD: Frames = {
    "state": (
        "There <are|were> {n} {T} {here}.",
        "{n} {T} <are|were> {here} {W}.",
        "{W,} there were {n} {T} {here}.",
        "{A} <saw|counted> {n} {T} {here}.",
    ),
    "sum": (
        "There <are|were> {n} {x} and {m} {y} {T} {here}.",
        "{A} saw {n} {T} {here} {d1} and {m} <more|{T}> {d2}.",
    ),
    "gain": (
        "{+e} {come}.",
        "{+e} {come} <later|soon after|a little later>.",
        "<Then|Later|A little later|After a while> {+e} {come}.",
    ),
    "loss": (
        "{-e} {go}.",
        "{-e} {go} <later|soon after|a little later>.",
        "<Then|Later|A little later|After a while> {-e} {go}.",
    ),
    "halved": (
        "Half of {them} {go}.",
        "<Then|Later|A little later|After a while> half of {them} {go}.",
        "{W,} half of {them} {go}.",
    ),
    "count": (
        "How many {T} are {here} <now|then>?",
        "{many} are there <now|in the end|then>?",
        "What is the number of {T} {here} <now|then>?",
    ),
    "left": (
        "{many} <are left|remain|are still there|are still {here}|stayed>?",
        "<How many {T}|How many of {them}> <are left|remain|stayed> {here}?",
    ),
    "total": (
        "{many} are {here} <in all|in total|altogether>?",
        "{many} <is that|are there> <in all|in total|altogether>?",
    ),
    "gained": (
        "<Now|Later|Soon> there are {q}. {many} {come}?",
        "<Then|Later> {A} counted {q} {T} {here}. How many [of them] {come} <meanwhile|since then>?",
    ),
    "lost": (
        "<Now|Later|Soon> there are only {q}. {many} {go}?",
        "<Then|Later> {A} counted only {q} {T} {here}. How many [of them] {go} <meanwhile|since then>?",
    ),
    "share": (
        "They form {q} equal <groups|teams>. {many} are in each <group|one>?",
        "They <stand|wait> in {q} equal rows. {many} are in <each|one> row?",
    ),
    "pack": (
        "They form <groups|teams> of {q}. How many <are there|is that>?",
        "{q} of them <form|make> one group. How many groups <are there|is that>?",
        "They <stand|wait> in rows of {q}. How many rows <are there|is that>?",
    ),
    "price": (
        "Each of them gets {q} {U}. How many {U} <are needed|is that|do they get in all>?",
        "Every one <has|brings> {q} {U}. How many {U} <are there|is that|do they have>?",
    ),
}

# Money that one person has.
MONEY: Frames = {
    "state": (
        "{A} <has|had> {n$}.",
        "{A} <has|had> {n$} in {A's} <pocket|wallet|purse>.",
        "{A} <earned|saved|got|found> {n$} {W}.",
        "{W,} {A} <earned|saved|got> {n$}.",
        "{B} gave {Ao} {n$}.",
    ),
    "product": (
        "{A} earns {n$} an hour and works <for {b} hours|{b} hours>.",
        "{A} earned {n$} <an hour|per hour> and worked {b} hours.",
        "{A} <saves|saved|earned> {n$} a week for {b} weeks.",
        "{A} sold {b} {T} for {n$} <each|apiece>.",
        "{A} <worked|works> for {b} hours and <gets|earned> {n$} <an hour|for each hour|per hour>.",
    ),
    "sum": (
        "{A} <earned|saved|got> {n$} {d1} and {m$} {d2}.",
        "{A} got {n$} from {Bo} and {m$} from {Eo}.",
    ),
    "more_than": (
        "{B} has {n$}. {A} has {m$} more <than {B}|>.",
        "{B} <saved|earned|got> {n$}, and {A} <saved|earned|got> {m$} more <than {B}|>.",
    ),
    "fewer_than": (
        "{B} has {n$}. {A} has {m$} less <than {B}|>.",
        "{B} <saved|earned|got> {n$}, and {A} <saved|earned|got> {m$} less <than {B}|>.",
    ),
    "times_as_many": (
        "{B} has {n$}. {A} has {b*} as much <as {B}|money>.",
        "{B} <saved|earned|got> {n$}, and {A} <saved|earned|got> {b*} as much.",
    ),
    "purchase": (
        "{A} <bought|buys|ordered> {b} {T} <at|for> {k$} <each|apiece>.",
        "<Each|One|Every> {t} costs {k$}. {A} <bought|buys> {b} <of them|{T}>.",
        "{A} paid {k$} for each of {b} {T}.",
    ),
    "gain": (
        "{A} <earned|got|found|saved> <another {e$}|{e$} more> {W}.",
        "<Then|Later> {A} <earned|got|found> <another {e$}|{e$} more>.",
        "{B} <gave|lent|sent> {Ao} <another {e$}|{e$} more|{e$}>.",
    ),
    "loss": (
        "{A} <spent|paid> {e$} <for|on> {a t}.",
        "{A} <bought|ordered> {a t} for {e$}.",
        "{A} <bought|ordered> {a t} <that costs|that cost> {e$}.",
        "<Then|Later> {A} <spent|lost> {e$}.",
        "{A} <gave|lent|sent> {e$} to {Bo}.",
        "{A} <gave|lent|paid> {Bo} {e$}.",
    ),
    "halved": (
        "{A} <spent|lost|gave away> half of it.",
        "{A} <gave|lent|sent> half of it to {Bo}.",
        "<Then|Later> {A} <spent|lost> half of it.",
    ),
    "count": (
        "{much} does {A} have " + _NOW + "?",
        "{much} is <that|it> " + _NOW + "?",
        "<Find|Say> how much money {A} has " + _NOW + ".",
    ),
    "left": (
        "{much} <is left|remains|is left over>?",
        "{much} does {A} <have left|still have>?",
        "How much of the money <is left|is still there>?",
    ),
    "total": ("{much} is that <in all|in total|altogether>?", "What is the total?", "{much} was it <in all|in total|altogether>?"),
    "share": (
        "{A} <shares|splits|divides> it " + _SHARED + " <among|between> {q} {F}. {much} does each {f} get?",
        "If {q} {F} <share|split> it " + _SHARED + ", {much,} does each <{f}|one|of them> get?",
    ),
    "pack": (
        "<One {t}|Each {t}|{a t}> costs {q$}. How many {T} can {A} <buy|get|afford>?",
        "How many {T} can {A} <buy|get|afford> <if one costs {q$}|at {q$} each|for {q$} each>?",
        "{A} spends {q$} <a day|each day|every day>. {how long} does the money last?",
    ),
    "more": (
        "{D} has {q$}. How much more <money|> does {A} have than {D}?",
        "{D} has only {q$}. How much less does {D} have <than {A}|>?",
    ),
    "fewer": (
        "{D} has {q$}. How much more <money|> does {D} have than {A}?",
        "{D} <saved|earned|has> {q$}. How much less does {A} have <than {D}|>?",
    ),
    "gained": (
        "{A} wants {a g} for {q$}. How much more <money|> does {A} need?",
        "{a g} costs {q$}. <How much more money|How much more> <does {A} need|must {A} save>?",
        "{A} wants to buy {a g} that costs {q$}. {much} <is missing|does {A} still need>?",
    ),
}

# Numbers that the answer does not need, and sentences without any: `k`, another person `D`, another thing `U`.
DISTRACTORS: tuple[str, ...] = (
    "{A} also has {k} {U}.",
    "{D} has {k} {U}.",
    "{D} <bought|saw|drew|found|lost> {k} {U} {W}.",
    "{A} is {k} years old.",
    "{D} is {k} years <old|older than {A's} mother>.",
    "{A} has lived <here|in this town|in this street> for {k} years.",
    "The <walk|way|ride> <home|to school|to work> takes {k} minutes.",
    "There are {k} <chairs|windows|people|tables> in the <room|house>.",
    "{D} read {k} pages <last night|of a book|on the train>.",
    "<{a u}|each {u}> costs {k} cents.",
    "{A} lives in house number {k}.",
    "It is {k} degrees <outside|today>.",
    "{A} <got up|left|came> at {k} minutes past six.",
)
FILLERS: tuple[str, ...] = (
    "{A} likes {U} <very much|a lot>.",
    "It was a <sunny|cold|long|rainy|fine> day.",
    "{A} lives <near the river|in a small town|next to a school>.",
    "{A} is <a friend|a neighbor|a cousin> of {D}.",
    "{D} <came to visit|watched|helped a little|was there, too>.",
    "{A} <was very happy|was in a hurry|had a good day>.",
)
