//! A real browser, driven through the Chrome DevTools protocol over two pipes: no port, no
//! driver beside it, and it ends when the test does.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::program::PATIENCE;
use super::{Lab, tools};

/// A browser with one page.
pub struct Browser {
    process: Child,
    commands: ChildStdin,
    messages: Receiver<Value>,
    /// Events that nobody has looked at.
    events: VecDeque<Value>,
    session: Option<String>,
    number: u64,
}

impl Browser {
    /// Starts it, in the lab's own folder.
    pub fn start(lab: &Lab) -> Self {
        // The shell puts our two pipes where the browser looks for them.
        let mut process = Command::new("sh")
            .args(["-c", "exec \"$0\" \"$@\" 3<&0 4>&1 </dev/null >/dev/null"])
            .arg(tools::chromium())
            .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-crash-reporter"])
            .args(["--remote-debugging-pipe", "--hide-scrollbars"])
            .arg(format!("--user-data-dir={}", lab.home().join("browser").display()))
            .env_clear()
            .envs([("PATH", "/usr/local/bin:/usr/bin:/bin"), ("LANG", "C.UTF-8")])
            .envs([("HOME", lab.home().join("home")), ("TMPDIR", lab.tmp())])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("a shell");
        let commands = process.stdin.take().expect("piped");
        let output = process.stdout.take().expect("piped");
        let (sender, messages) = channel();
        std::thread::spawn(move || {
            let mut output = BufReader::new(output);
            let mut message = Vec::new();
            while let Ok(1..) = output.read_until(0, &mut message) {
                message.pop();
                let Ok(value) = serde_json::from_slice(&message) else { break };
                if sender.send(value).is_err() {
                    break;
                }
                message.clear();
            }
        });
        let mut browser = Self { process, commands, messages, events: VecDeque::new(), session: None, number: 0 };
        browser.new_page();
        browser
    }

    /// A new, empty page, which is the one that is talked to from now on.
    pub fn new_page(&mut self) {
        self.session = None;
        let target = self.call("Target.createTarget", &json!({"url": "about:blank"}))["targetId"].clone();
        let attached = self.call("Target.attachToTarget", &json!({"targetId": target, "flatten": true}));
        self.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log"] {
            self.call(&format!("{domain}.enable"), &json!({}));
        }
    }

    /// Does something, and waits for what comes of it.
    #[track_caller]
    pub fn call(&mut self, method: &str, parameters: &Value) -> Value {
        self.number += 1;
        let mut message = json!({"id": self.number, "method": method, "params": parameters});
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        self.commands.write_all(format!("{message}\0").as_bytes()).expect("the browser listens");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let message = self.next(deadline).unwrap_or_else(|| panic!("the browser does not answer {method}"));
            if message["id"] == self.number {
                assert!(message["error"].is_null(), "{method}: {}", message["error"]);
                return message["result"].clone();
            }
            self.events.push_back(message);
        }
    }

    fn next(&mut self, deadline: Instant) -> Option<Value> {
        self.messages.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()
    }

    /// Goes to an address and waits until all of the page was loaded.
    #[track_caller]
    pub fn visit(&mut self, address: &str) {
        self.events.clear();
        let gone = self.call("Page.navigate", &json!({"url": address}));
        assert!(gone["errorText"].is_null(), "{address}: {gone}");
        let deadline = Instant::now() + PATIENCE;
        while !self.events.iter().any(|event| event["method"] == "Page.loadEventFired") {
            let event = self.next(deadline).unwrap_or_else(|| panic!("{address} does not load"));
            self.events.push_back(event);
        }
    }

    /// What an expression is in the page; a promise is waited for.
    #[track_caller]
    pub fn eval(&mut self, expression: &str) -> Value {
        let asked = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let answer = self.call("Runtime.evaluate", &asked);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {}", answer["exceptionDetails"]);
        answer["result"]["value"].clone()
    }

    /// Waits until an expression holds.
    #[track_caller]
    pub fn wait_for(&mut self, expression: &str) {
        let deadline = Instant::now() + PATIENCE;
        while self.eval(&format!("Boolean({expression})")) != true {
            assert!(Instant::now() < deadline, "waited in vain for {expression}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Presses a key: `Tab`, `Enter`, `Escape`, `ArrowDown` or a letter.
    #[track_caller]
    pub fn press(&mut self, key: &str) {
        let code = match key {
            "Tab" => 9,
            "Enter" => 13,
            "Escape" => 27,
            "ArrowLeft" => 37,
            "ArrowUp" => 38,
            "ArrowRight" => 39,
            "ArrowDown" => 40,
            _ => 0,
        };
        let text = match key {
            "Enter" => "\r",
            letter if letter.len() == 1 => letter,
            _ => "",
        };
        let kind = if text.is_empty() { "rawKeyDown" } else { "keyDown" };
        let mut event = json!({"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "text": text});
        self.call("Input.dispatchKeyEvent", &event);
        event["type"] = json!("keyUp");
        self.call("Input.dispatchKeyEvent", &event);
    }

    /// Types a text into what has the focus.
    #[track_caller]
    pub fn type_text(&mut self, text: &str) {
        self.call("Input.insertText", &json!({"text": text}));
    }

    /// Clicks at a place of the window.
    #[track_caller]
    pub fn click_at(&mut self, x: f64, y: f64) {
        for kind in ["mouseMoved", "mousePressed", "mouseReleased"] {
            let button = if kind == "mouseMoved" { "none" } else { "left" };
            let event = json!({"type": kind, "x": x, "y": y, "button": button, "clickCount": 1});
            self.call("Input.dispatchMouseEvent", &event);
        }
    }

    /// Clicks into the middle of what a selector finds.
    #[track_caller]
    pub fn click(&mut self, selector: &str) {
        let place = self.eval(&format!(
            "(() => {{ const found = document.querySelector({selector:?}); found.scrollIntoView({{block: 'center'}});
                const box = found.getBoundingClientRect();
                return [box.left + Math.min(box.width, innerWidth) / 2, box.top + box.height / 2]; }})()"
        ));
        let at = |index: usize| place[index].as_f64().expect("a number");
        self.click_at(at(0), at(1));
    }

    /// Makes the window this wide.
    #[track_caller]
    pub fn resize(&mut self, width: u32, height: u32) {
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500});
        self.call("Emulation.setDeviceMetricsOverride", &metrics);
    }

    /// Asks for `light` or `dark`.
    #[track_caller]
    pub fn prefer(&mut self, scheme: &str) {
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.call("Emulation.setEmulatedMedia", &json!({"features": features}));
    }

    /// A picture of the window: a PNG in base64.
    #[track_caller]
    pub fn screenshot(&mut self) -> String {
        let shot = self.call("Page.captureScreenshot", &json!({"format": "png"}));
        let text = shot["data"].as_str().expect("a picture").to_owned();
        // To be looked at by whoever works on the page.
        if let Some(folder) = std::env::var_os("ISOLANE_TEST_SHOTS") {
            use base64::Engine;
            let name = format!("{:?}-{}.png", std::thread::current().name().unwrap_or_default(), self.number);
            let bytes = base64::engine::general_purpose::STANDARD.decode(&text).expect("base64");
            std::fs::write(std::path::Path::new(&folder).join(name.replace(['"', ':'], "")), bytes).expect("a picture");
        }
        text
    }

    /// How many colours a picture has, and the colour of its upper left corner, `[r, g, b]`.
    /// Another page reads it: pages that load nothing cannot load a picture either.
    #[track_caller]
    pub fn colours(&mut self, picture: &str) -> (u64, Value) {
        let session = self.session.take();
        self.new_page();
        let found = self.eval(&format!(
            "(async () => {{
                const bytes = Uint8Array.from(atob('{picture}'), (letter) => letter.charCodeAt(0));
                const image = await createImageBitmap(new Blob([bytes], {{type: 'image/png'}}));
                const pen = new OffscreenCanvas(image.width, image.height).getContext('2d');
                pen.drawImage(image, 0, 0);
                const {{data}} = pen.getImageData(0, 0, image.width, image.height);
                return [new Set(new Uint32Array(data.buffer)).size, [...data.slice(0, 3)]];
            }})()"
        ));
        self.call("Page.close", &json!({}));
        self.session = session;
        (found[0].as_u64().expect("a number"), found[1].clone())
    }

    /// What the page complained of since it was visited: errors, warnings, refusals.
    pub fn complaints(&mut self) -> Vec<String> {
        while let Ok(event) = self.messages.try_recv() {
            self.events.push_back(event);
        }
        let is_complaint = |event: &&Value| match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => true,
            Some("Runtime.consoleAPICalled") => event["params"]["type"] != "log",
            Some("Log.entryAdded") => event["params"]["entry"]["level"] != "info",
            _ => false,
        };
        self.events.iter().filter(is_complaint).map(|event| event["params"].to_string()).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.commands.write_all(b"{\"id\": 0, \"method\": \"Browser.close\"}\0");
        let deadline = Instant::now() + Duration::from_secs(5);
        while matches!(self.process.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
