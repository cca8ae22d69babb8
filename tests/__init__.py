from tests.helpers import seeds

if seeds.SHIFT:
    seeds.install()
