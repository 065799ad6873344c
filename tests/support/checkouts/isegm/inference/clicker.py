"""A stand-in for the clicks of the `isegm` code base: same names and arguments."""


class Click:
    def __init__(self, is_positive, coords, indx=None):
        self.is_positive, self.coords, self.indx = is_positive, coords, indx


class Clicker:
    def __init__(self, gt_mask=None, init_clicks=None, ignore_label=-1, click_indx_offset=0):
        self.clicks_list = []

    def add_click(self, click):
        click.indx = len(self.clicks_list)
        self.clicks_list.append(click)

    def get_clicks(self, clicks_limit=None):
        return self.clicks_list[:clicks_limit]
