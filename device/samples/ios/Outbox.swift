// SAMPLE, never compiled and never run: there was no Swift compiler. See README.md.
import Foundation

/// Events that wait for their upload, in order of arrival, each id once. A full outbox drops the oldest. They are written to
/// `file` on arrival and survive the app's end: an event must be kept until the cloud has acknowledged it. Where the disk fails
/// they stay in memory: feedback must never stop the feed.
final class Outbox {
    static let eventsMax = 1000 // in a call
    static let bytesMax = 256 << 10 // in a call; the cloud takes 1 MiB
    static let waitingMax = 10_000 // an hour of swiping has about a thousand
    static let idsMax = 4096

    private let file: URL?
    private var waiting: [(id: String, bytes: Data)] = []
    private var known: Set<String> = [] // ids of events, sent or not, to recognize repeats
    private var knownInOrder: [String] = []

    init(file: URL?) {
        self.file = file
        // One event after the other, each behind its size. An event that was cut off by the end of the process is skipped.
        let bytes = file.flatMap { try? Data(contentsOf: $0) } ?? Data()
        var at = 0
        while at + 4 <= bytes.count {
            let size = bytes[at..<at + 4].reduce(0) { $0 << 8 | Int($1) }
            guard size <= bytes.count - at - 4 else { break }
            let event = Data(bytes[at + 4..<at + 4 + size])
            guard let id = try? MessagePack.decode(event).field("event_id").text() else { break }
            remember(id)
            waiting.append((id, event))
            at += 4 + size
        }
        _ = trim()
        if at < bytes.count { rewrite() } // the next event must not follow half an event
    }

    /// False when the id of this event is known, sent or not.
    func add(_ event: FeedbackEvent) -> Bool {
        guard !known.contains(event.eventId) else { return false }
        remember(event.eventId)
        let bytes = event.encode()
        waiting.append((event.eventId, bytes))
        if !trim() { appendToFile(bytes) }
        return true
    }

    /// The oldest waiting events in their form on the wire: up to `most`, in as many bytes as a call carries. They wait until
    /// they are acknowledged.
    func waitingEvents(_ most: Int = Outbox.eventsMax) -> [(id: String, bytes: Data)] {
        var some: [(id: String, bytes: Data)] = []
        var size = 0
        for event in waiting.prefix(most) {
            size += event.bytes.count
            if size > Self.bytesMax && !some.isEmpty { break }
            some.append(event)
        }
        return some
    }

    /// Remove these events: the cloud has answered their request or batch.
    func acknowledged(_ eventIds: [String]) {
        let sent = Set(eventIds)
        waiting.removeAll { sent.contains($0.id) }
        rewrite()
    }

    /// The body of `POST /v1/feedback` with these events, for the time when the app goes to the background and asks for no page.
    func batch(_ events: [(id: String, bytes: Data)]) -> Data {
        MessagePack.encode(.map(["version": .int(wireVersion), "events": .list(events.map { .raw($0.bytes) })]))
    }

    private func remember(_ id: String) {
        known.insert(id)
        knownInOrder.append(id)
        if knownInOrder.count > Self.idsMax { known.remove(knownInOrder.removeFirst()) }
    }

    private func trim() -> Bool {
        let over = waiting.count - Self.waitingMax
        guard over > 0 else { return false }
        // Drop more than necessary, so that a full outbox does not rewrite its file at every swipe.
        waiting.removeFirst(over + Self.waitingMax / 100)
        rewrite()
        return true
    }

    private func appendToFile(_ bytes: Data) {
        guard let file else { return }
        do {
            let handle = try FileHandle(forWritingTo: file)
            defer { try? handle.close() }
            try handle.seekToEnd()
            try handle.write(contentsOf: framed(bytes))
        } catch {
            rewrite() // the first event: there is no file yet
        }
    }

    /// Whole or not at all. After the phone was locked, the feed's events still can be written.
    private func rewrite() {
        guard let file else { return }
        let all = waiting.reduce(into: Data()) { $0.append(framed($1.bytes)) }
        try? all.write(to: file, options: [.atomic, .completeFileProtectionUntilFirstUserAuthentication])
    }

    private func framed(_ bytes: Data) -> Data {
        withUnsafeBytes(of: UInt32(bytes.count).bigEndian) { Data($0) } + bytes
    }
}
