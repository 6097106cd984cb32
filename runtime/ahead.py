"""Reading files ahead of the computation that uses them."""
import collections
import concurrent.futures


def read_ahead(load, order):
    """Yield load(item) for each item of `order`, loading the next ones in advance."""
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
