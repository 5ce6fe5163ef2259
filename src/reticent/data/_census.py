"""Census-Income (KDD): nearly 200,000 people, encoded from public constants alone.

Room: data. Imports numpy only.

Each row is encoded from itself and from constants fixed here. The lists of categories are those of the
published files, written down once; a value outside them is refused. Left out: the survey weight, no
property of the person, and the detailed industry and occupation codes, which refine two columns kept.

Shape letters: N example, C categorical column.

Sources:
    [1] Lane and Kohavi 2000, Census-Income (KDD), UCI Machine Learning Repository, doi:10.24432/C5N30T.
"""

import csv
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np

from reticent.data._images import bad_format
from reticent.data._records import ArrayPair, Arrays

NUM_COLUMNS: Final = 42
UNKNOWN: Final = "?"
_UNKNOWN_CODE: Final = 255

# Column -> (place in the file, value that maps to 1). Larger values are cut; money goes through log(1 + x).
NUMERIC: Final[Mapping[str, tuple[int, float]]] = MappingProxyType(
    {
        "age": (0, 100.0),
        "wage_per_hour": (5, 10_000.0),
        "capital_gains": (16, 100_000.0),
        "capital_losses": (17, 100_000.0),
        "dividends": (18, 100_000.0),
        "num_persons_worked_for_employer": (30, 6.0),
        "weeks_worked": (39, 52.0),
    }
)
_LOGARITHMIC: Final = ("wage_per_hour", "capital_gains", "capital_losses", "dividends")

_COUNTRIES: Final = (
    "Cambodia|Canada|China|Columbia|Cuba|Dominican-Republic|Ecuador|El-Salvador|England|"
    "France|Germany|Greece|Guatemala|Haiti|Holand-Netherlands|Honduras|Hong Kong|Hungary|"
    "India|Iran|Ireland|Italy|Jamaica|Japan|Laos|Mexico|Nicaragua|"
    "Outlying-U S (Guam USVI etc)|Panama|Peru|Philippines|Poland|Portugal|Puerto-Rico|"
    "Scotland|South Korea|Taiwan|Thailand|Trinadad&Tobago|United-States|Vietnam|Yugoslavia"
)

# In the order of the file; places below.
_CATEGORIES_TEXT: Final[Mapping[str, str]] = MappingProxyType(
    {
        "class_of_worker": (
            "Federal government|Local government|Never worked|Not in universe|Private|"
            "Self-employed-incorporated|Self-employed-not incorporated|State government|Without pay"
        ),
        "education": (
            "10th grade|11th grade|12th grade no diploma|1st 2nd 3rd or 4th grade|5th or 6th grade|"
            "7th and 8th grade|9th grade|Associates degree-academic program|"
            "Associates degree-occup /vocational|Bachelors degree(BA AB BS)|Children|"
            "Doctorate degree(PhD EdD)|High school graduate|Less than 1st grade|"
            "Masters degree(MA MS MEng MEd MSW MBA)|Prof school degree (MD DDS DVM LLB JD)|"
            "Some college but no degree"
        ),
        "enrolled": "College or university|High school|Not in universe",
        "marital_status": (
            "Divorced|Married-A F spouse present|Married-civilian spouse present|"
            "Married-spouse absent|Never married|Separated|Widowed"
        ),
        "industry": (
            "Agriculture|Armed Forces|Business and repair services|Communications|Construction|"
            "Education|Entertainment|Finance insurance and real estate|Forestry and fisheries|"
            "Hospital services|Manufacturing-durable goods|Manufacturing-nondurable goods|"
            "Medical except hospital|Mining|Not in universe or children|Other professional services|"
            "Personal services except private HH|Private household services|Public administration|"
            "Retail trade|Social services|Transportation|Utilities and sanitary services|"
            "Wholesale trade"
        ),
        "occupation": (
            "Adm support including clerical|Armed Forces|Executive admin and managerial|"
            "Farming forestry and fishing|Handlers equip cleaners etc|"
            "Machine operators assmblrs & inspctrs|Not in universe|Other service|"
            "Precision production craft & repair|Private household services|Professional specialty|"
            "Protective services|Sales|Technicians and related support|"
            "Transportation and material moving"
        ),
        "race": ("Amer Indian Aleut or Eskimo|Asian or Pacific Islander|Black|Other|White"),
        "hispanic_origin": (
            "All other|Central or South American|Chicano|Cuban|Do not know|Mexican (Mexicano)|"
            "Mexican-American|NA|Other Spanish|Puerto Rican"
        ),
        "sex": "Female|Male",
        "union_member": "No|Not in universe|Yes",
        "unemployment_reason": (
            "Job leaver|Job loser - on layoff|New entrant|Not in universe|Other job loser|Re-entrant"
        ),
        "work_schedule": (
            "Children or Armed Forces|Full-time schedules|Not in labor force|"
            "PT for econ reasons usually FT|PT for econ reasons usually PT|"
            "PT for non-econ reasons usually FT|Unemployed full-time|Unemployed part- time"
        ),
        "tax_filer": (
            "Head of household|Joint both 65+|Joint both under 65|Joint one under 65 & one 65+|"
            "Nonfiler|Single"
        ),
        "previous_region": "Abroad|Midwest|Northeast|Not in universe|South|West",
        "previous_state": (
            "Abroad|Alabama|Alaska|Arizona|Arkansas|California|Colorado|Connecticut|Delaware|"
            "District of Columbia|Florida|Georgia|Idaho|Illinois|Indiana|Iowa|Kansas|Kentucky|"
            "Louisiana|Maine|Maryland|Massachusetts|Michigan|Minnesota|Mississippi|Missouri|Montana|"
            "Nebraska|Nevada|New Hampshire|New Jersey|New Mexico|New York|North Carolina|"
            "North Dakota|Not in universe|Ohio|Oklahoma|Oregon|Pennsylvania|South Carolina|"
            "South Dakota|Tennessee|Texas|Utah|Vermont|Virginia|West Virginia|Wisconsin|Wyoming"
        ),
        "household_detail": (
            "Child 18+ ever marr Not in a subfamily|Child 18+ ever marr RP of subfamily|"
            "Child 18+ never marr Not in a subfamily|Child 18+ never marr RP of subfamily|"
            "Child 18+ spouse of subfamily RP|Child <18 ever marr RP of subfamily|"
            "Child <18 ever marr not in subfamily|Child <18 never marr RP of subfamily|"
            "Child <18 never marr not in subfamily|Child <18 spouse of subfamily RP|"
            "Child under 18 of RP of unrel subfamily|Grandchild 18+ ever marr RP of subfamily|"
            "Grandchild 18+ ever marr not in subfamily|Grandchild 18+ never marr RP of subfamily|"
            "Grandchild 18+ never marr not in subfamily|Grandchild 18+ spouse of subfamily RP|"
            "Grandchild <18 ever marr not in subfamily|Grandchild <18 never marr RP of subfamily|"
            "Grandchild <18 never marr child of subfamily RP|"
            "Grandchild <18 never marr not in subfamily|Householder|In group quarters|"
            "Nonfamily householder|Other Rel 18+ ever marr RP of subfamily|"
            "Other Rel 18+ ever marr not in subfamily|Other Rel 18+ never marr RP of subfamily|"
            "Other Rel 18+ never marr not in subfamily|Other Rel 18+ spouse of subfamily RP|"
            "Other Rel <18 ever marr RP of subfamily|Other Rel <18 ever marr not in subfamily|"
            "Other Rel <18 never marr child of subfamily RP|"
            "Other Rel <18 never marr not in subfamily|Other Rel <18 never married RP of subfamily|"
            "Other Rel <18 spouse of subfamily RP|RP of unrelated subfamily|Secondary individual|"
            "Spouse of RP of unrelated subfamily|Spouse of householder"
        ),
        "household_summary": (
            "Child 18 or older|Child under 18 ever married|Child under 18 never married|"
            "Group Quarters- Secondary individual|Householder|Nonrelative of householder|"
            "Other relative of householder|Spouse of householder"
        ),
        "migration_msa": (
            "Abroad to MSA|Abroad to nonMSA|MSA to MSA|MSA to nonMSA|NonMSA to MSA|NonMSA to nonMSA|"
            "Nonmover|Not identifiable|Not in universe"
        ),
        "migration_region": (
            "Abroad|Different county same state|Different division same region|Different region|"
            "Different state same division|Nonmover|Not in universe|Same county"
        ),
        "migration_within_region": (
            "Abroad|Different county same state|Different state in Midwest|"
            "Different state in Northeast|Different state in South|Different state in West|Nonmover|"
            "Not in universe|Same county"
        ),
        "lived_here_a_year": "No|Not in universe under 1 year old|Yes",
        "migration_sunbelt": "No|Not in universe|Yes",
        "parents_present": (
            "Both parents present|Father only present|Mother only present|Neither parent present|"
            "Not in universe"
        ),
        "father_country": _COUNTRIES,
        "mother_country": _COUNTRIES,
        "own_country": _COUNTRIES,
        "citizenship": (
            "Foreign born- Not a citizen of U S|Foreign born- U S citizen by naturalization|"
            "Native- Born abroad of American Parent(s)|Native- Born in Puerto Rico or U S Outlying|"
            "Native- Born in the United States"
        ),
        "own_business": "0|1|2",
        "veterans_questionnaire": "No|Not in universe|Yes",
        "veterans_benefits": "0|1|2",
        "year": "94|95",
    }
)
CATEGORIES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {column: tuple(text.split("|")) for column, text in _CATEGORIES_TEXT.items()}
)
_PLACES: Final = (
    *(1, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 19, 20, 21, 22, 23, 25, 26, 27, 28, 29, 31, 32, 33, 34, 35),
    *(36, 37, 38, 40),
)
FEATURE_NAMES: Final = (
    *NUMERIC,
    *(f"{column}={value}" for column, values in CATEGORIES.items() for value in values),
)


def decode_census(folders: tuple[Path, ...]) -> Arrays:
    """The two files, wherever they lie: numbers (N, 7), category codes (N, C), 1 for an income above 50K."""
    (folder,) = folders
    arrays: dict[str, np.ndarray] = {}
    for split in ("train", "test"):
        name = f"census_income_1994_1995_{split}.csv"
        path = next(iter(sorted(folder.rglob(name))), folder / name)
        numbers, codes, labels = _decoded(path)
        arrays |= {f"{split}_numbers": numbers, f"{split}_codes": codes, f"{split}_y": labels}
    return arrays


def assemble_census(arrays: Arrays) -> tuple[ArrayPair, ArrayPair]:
    """Decoded columns -> encoded splits: float32 in [0, 1], columns as in `FEATURE_NAMES`."""

    def split(name: str) -> ArrayPair:
        return ArrayPair(
            encode_census(arrays[f"{name}_numbers"], arrays[f"{name}_codes"]), arrays[f"{name}_y"]
        )

    return split("train"), split("test")


def encode_census(numbers: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Numbers divided by their round constants and cut to [0, 1], categories one-hot; unknown ones are zeros.

    Guarantee:
        A row's features depend on that row alone.
    """
    encoded = np.zeros((len(numbers), len(FEATURE_NAMES)), dtype=np.float32)
    for place, (column, (_, scale)) in enumerate(NUMERIC.items()):
        x = numbers[:, place].astype(np.float64)
        if column in _LOGARITHMIC:
            x, scale = np.log1p(np.clip(x, 0.0, scale)), np.log1p(scale)
        encoded[:, place] = np.clip(x / scale, 0.0, 1.0)
    start, rows = len(NUMERIC), np.arange(len(numbers))
    for place, values in enumerate(CATEGORIES.values()):
        known = codes[:, place] != _UNKNOWN_CODE
        encoded[rows[known], start + codes[known, place].astype(np.int64)] = 1.0
        start += len(values)
    return encoded


def _decoded(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    numbers, codes, labels = [], [], []
    places = [place for place, _ in NUMERIC.values()]
    tables = [
        {v: k for k, v in enumerate(values)} | {UNKNOWN: _UNKNOWN_CODE} for values in CATEGORIES.values()
    ]
    with path.open(encoding="ascii", newline="") as stream:
        for row in csv.reader(stream):
            cells = [cell.strip() for cell in row]
            if len(cells) != NUM_COLUMNS or cells[-1] not in ("- 50000.", "50000+."):
                raise bad_format(path, f"has a row that is not {NUM_COLUMNS} cells with an income at its end")
            numbers.append([float(cells[place]) for place in places])
            codes.append([table[cells[place]] for table, place in zip(tables, _PLACES, strict=True)])
            labels.append(cells[-1] == "50000+.")
    return np.array(numbers, np.float32), np.array(codes, np.uint8), np.array(labels, np.int64)
