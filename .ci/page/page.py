"""The admin page, looked at by a browser while requests go through the gateway.

    page.py BINARY FOLDER      screenshots go into FOLDER

Prints ok or FAIL for each thing that must hold, and fails when one does not.
"""

import re
import subprocess
import sys
import threading
import time
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
]
failed = []


def holds(name, good, said=""):
    print(f"{'ok   ' if good else 'FAIL '} {name}" + ("" if good else f": {said}"), flush=True)
    if not good:
        failed.append(name)


class Gateway:
    """`isthmus demo`, and somebody who calls it all the time."""

    def __init__(self, binary):
        self.process = subprocess.Popen(
            [binary, "demo", "--gateway-port", "0", "--probe-port", "0", "--admin-port", "0"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )
        said = []
        for line in self.process.stdout:
            said.append(line)
            if "Ctrl-C ends it" in line:
                break
        said = "".join(said)
        self.admin = re.search(r"http://(127\.0\.0\.1:\d+)/state", said)[1]
        self.call = re.search(r"curl -sS --http1.1 (.*?) -H 'host: web", said)[1].split()
        self.url = re.search(r"(https://[^/\s]+:\d+)/hello", said)[1]
        self.over = threading.Event()
        self.caller = threading.Thread(target=self.calls, daemon=True)
        self.caller.start()

    def calls(self):
        def curl(version, host, *paths):
            urls = [f"{self.url}{path}" for path in paths]
            subprocess.run(
                ["curl", "-sS", "-g", version, *self.call, "-H", f"host: {host}.demo.svc.cluster.local", *urls],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False,
            )
        while not self.over.is_set():
            curl("--http2", "web", *(f"/hello?{n}" for n in range(40)))
            curl("--http1.1", "web", *(f"/hello?{n}" for n in range(20)))
            curl("--http1.1", "private", "/<img/src=x/onerror=document.title=1>")
            time.sleep(0.2)

    def end(self):
        self.over.set()
        self.caller.join(timeout=20)
        self.process.terminate()
        self.process.wait(timeout=20)


def channel(value):
    value /= 255
    return value / 12.92 if value <= 0.03928 else ((value + 0.055) / 1.055) ** 2.4


def contrast(one, two):
    """WCAG 2.2, contrast ratio of two colours as a browser computes them."""
    light = []
    for colour in (one, two):
        red, green, blue = (channel(float(part)) for part in re.findall(r"[\d.]+", colour)[:3])
        light.append(0.2126 * red + 0.7152 * green + 0.0722 * blue)
    return (max(light) + 0.05) / (min(light) + 0.05)


COLOURS = """
const ground = element => { for (let e = element; e; e = e.parentElement) {
  const colour = getComputedStyle(e).backgroundColor; if (!/, 0\\)$/.test(colour) && colour !== 'transparent') return colour; }
  return 'rgb(255,255,255)'; };
return [...document.querySelectorAll('h1,h2,.label,.aside,.figure,.pill,.notice,th,td,caption,button,a,input,.who')]
  .filter(e => e.textContent.trim() && e.offsetParent)
  .map(e => [e.tagName + '.' + e.className + ' ' + e.textContent.slice(0, 30), getComputedStyle(e).color, ground(e)]);
"""

NAMES = """
const unnamed = [...document.querySelectorAll('button,input,svg[role=img],[role=region],table,progress')].filter(e => !(
  e.textContent.trim() && e.tagName === 'BUTTON' || e.labels && e.labels.length || e.getAttribute('aria-label')
  || e.getAttribute('aria-labelledby') && document.getElementById(e.getAttribute('aria-labelledby')) || e.caption && e.caption.textContent));
return unnamed.map(e => e.outerHTML.slice(0, 120));
"""

DRAINING = """
const done = arguments[arguments.length - 1];
fetch('/overview').then(r => r.json()).then(now => { now.phase = 'announced'; now.ready = false; now.not_ready = 'draining';
  show(now); done([document.getElementById('state').textContent, document.getElementById('notices').textContent]); });
"""


def looked_at(gateway, folder):
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    text = lambda name: browser.find_element(By.ID, name).text
    wait = lambda until: WebDriverWait(browser, 30, ignored_exceptions=[Exception]).until(lambda _: until())
    scheme = lambda kind: browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": kind}]})
    try:
        scheme("light")
        browser.set_window_size(1360, 1500)
        browser.get(f"http://{gateway.admin}/")
        wait(lambda: re.match(r"[1-9][\d.,]*( k)?/s$", text("rate")))
        holds("a rate of requests is shown", True)
        holds("it is ready and says so", text("state") == "Ready", text("state"))
        holds("who it is", "serviceaccount" in text("who"), text("who"))
        wait(lambda: "web.demo.svc.cluster.local:80" in text("pairs"))
        holds("clients and services are in the table", True)
        wait(lambda: re.search(r"\d (ms|µs)", text("took")))
        holds("p50 and p99 are shown", True)
        wait(lambda: "authorise" in text("codes") or "route" in text("codes"))
        holds("refusals by code", True)
        holds("own certificate and anchors, with what is left", "own certificate" in text("certificates")
              and "trust anchor" in text("certificates") and "left" in text("certificates"), text("certificates"))
        holds("endpoints", "127.0.0.1:" in text("endpoints"), text("endpoints"))
        wait(lambda: "private.demo" in text("calls"))
        holds("what the policy refused, by client and rule", True)
        holds("what a peer wrote is text", not browser.find_elements(By.CSS_SELECTOR, "main img"))
        time.sleep(8)
        browser.save_screenshot(str(folder / "light.png"))

        seen = []
        for _ in range(6):
            webdriver.ActionChains(browser).send_keys(Keys.TAB).perform()
            seen.append(browser.execute_script(
                "const e = document.activeElement; return (e.id || e.className || e.tagName) + getComputedStyle(e).outlineStyle"))
        holds("the Tab key reaches the controls, and shows where it is", any(s.startswith("pause") for s in seen)
              and any(s.startswith("filter") for s in seen) and all(s.endswith(("solid", "auto")) for s in seen), seen)

        box = browser.find_element(By.ID, "filter")
        box.send_keys("no such thing")
        wait(lambda: "Nothing fits" in text("pairs"))
        box.send_keys(Keys.CONTROL + "a", Keys.DELETE)
        wait(lambda: "web.demo" in text("pairs"))
        holds("the filter filters", True)
        header = browser.find_element(By.CSS_SELECTOR, "#pairs th:nth-child(3) button")
        header.send_keys(Keys.ENTER)
        cell = browser.find_element(By.CSS_SELECTOR, "#pairs th:nth-child(3)")
        first = cell.get_attribute("aria-sort")
        header.send_keys(Keys.ENTER)
        holds("columns sort by keyboard", [first, cell.get_attribute("aria-sort")] == ["ascending", "descending"], first)
        pause = browser.find_element(By.ID, "pause")
        pause.send_keys(Keys.SPACE)
        stood = text("fresh")
        time.sleep(4)
        holds("a pause holds still", pause.get_attribute("aria-pressed") == "true" and text("fresh") == stood, text("fresh"))
        said = browser.execute_async_script(DRAINING)
        holds("a drain is told", said[0].startswith("Draining") and "left to finish" in said[1], said)
        browser.save_screenshot(str(folder / "draining.png"))
        pause.send_keys(Keys.SPACE)
        wait(lambda: text("state") == "Ready")

        unnamed = browser.execute_script(NAMES)
        holds("everything has a name for a screen reader", not unnamed, unnamed)
        for kind in ("light", "dark"):
            scheme(kind)
            time.sleep(0.3)
            pale = [(what, round(contrast(one, two), 2)) for what, one, two in browser.execute_script(COLOURS)
                    if contrast(one, two) < 4.5]
            holds(f"contrast of text, {kind}", not pale, pale[:5])
        browser.save_screenshot(str(folder / "dark.png"))
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                                {"width": 360, "height": 780, "deviceScaleFactor": 2, "mobile": True})
        time.sleep(3)
        wide = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
        holds("it fits a phone", wide[0] <= wide[1], wide)
        browser.save_screenshot(str(folder / "phone.png"))
        severe = [line["message"] for line in browser.get_log("browser") if line["level"] == "SEVERE"]
        holds("the console has no complaint", not severe, severe)
        gateway.end()
        wait(lambda: text("state") == "No answer")
        holds("a gateway that is gone is told", True)
    finally:
        browser.quit()


def main():
    gateway = Gateway(sys.argv[1])
    try:
        looked_at(gateway, Path(sys.argv[2]))
    finally:
        if gateway.process.poll() is None:
            gateway.end()
    print(f"{len(failed)} failed")
    sys.exit(1 if failed else 0)


main()
