"""Files that are read while what came before them is computed."""
import collections
import concurrent.futures


def read_ahead(load, order):
    """Yield load(item) for each item of `order`; the next ones are read meanwhile."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        ahead = collections.deque()
        try:
            for item in order:
                ahead.append(pool.submit(load, item))
                if len(ahead) > 3:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()
