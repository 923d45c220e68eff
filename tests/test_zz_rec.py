def test_rec(recorded):
    print(sorted(p.name for p in recorded.glob("*/*"))[:5]); print((recorded/"expert/dataset.json").read_text()[:900])
