// SAMPLE, never compiled and never run: there was no Swift compiler. See README.md.
import Foundation

/// One position of the feed and the item that was chosen for it.
struct Place: Sendable {
    let itemId: Int64
    let pageId: String?
    let position: Int64
}

/// Stands between the screen and a `FeedSession`. An actor: the session, the model and the outbox are touched by one task at a
/// time and never by the main thread; during a page request the actor is free, so that a slow cloud never holds up an order.
///
/// The feed holds the item on screen and the next one, whose video is being buffered. Neither moves when the order changes:
/// each swipe decides what follows them.
actor FeedController {
    static let ahead: Int64 = 1
    static let retryNanoseconds: UInt64 = 1_000_000_000
    static let retryMaxNanoseconds: UInt64 = 60_000_000_000
    static let timeoutSeconds = 5.0
    static let answerMax = 16 << 20 // bytes; a page of 60 candidates has ten thousand
    static let doubt = 2 // failures in a row after which every other request carries no feedback
    static let refusals: Set<Int> = [400, 413, 422] // statuses that blame what was sent

    nonisolated let userId: Int64
    nonisolated let sessionId = UUID().uuidString
    private let cloud: URL
    private let folder: URL // Application Support: the bundle's folder, the compiled models and the outbox
    private let append: @MainActor @Sendable (Place) -> Void
    private var outbox = Outbox(file: nil)
    private var session: FeedSession?
    private var reached: Int64 = 0 // the farthest position that was on screen
    private var asking = false
    private var retry = FeedController.retryNanoseconds
    private var eventsMax = Outbox.eventsMax
    private var failures = 0 // in a row, of requests with events
    private var suspects: [String] = [] // events with which the last request failed: the next one carries none
    private var refused = false // whether the cloud blamed what was sent

    init(userId: Int64, cloud: URL, folder: URL, append: @escaping @MainActor @Sendable (Place) -> Void) {
        self.userId = userId
        self.cloud = cloud
        self.folder = folder
        self.append = append
    }

    func start() async {
        try? FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        let ranker = await openRanker()
        outbox = Outbox(file: folder.appending(path: "outbox-\(userId)")) // nobody sends the feedback of another account
        session = FeedSession(ranker: ranker, userId: userId, sessionId: sessionId, outbox: outbox)
        fill()
    }

    /// A bundle that is missing, damaged or does not run results in cloud order, not in a crash.
    private func openRanker() async -> Ranker? {
        guard let bundle = try? ModelBundle(opening: folder.appending(path: "bundle")) else { return nil }
        var models: [Form: any Model] = [:]
        for form in Form.allCases {
            guard let package = bundle.model(form) else { continue }
            let compiled = folder.appending(path: "\(form.rawValue).mlmodelc") // remove it when the bundle changes
            if !FileManager.default.fileExists(atPath: compiled.path) { try? await CoreMLModel.compile(package, to: compiled) }
            models[form] = try? CoreMLModel(compiled: compiled)
        }
        return models.isEmpty ? nil : Ranker(spec: bundle.spec, splitVersion: bundle.splitVersion, models: models)
    }

    /// The user has left an item for the one at position `now`: learn from it, then choose the item after the buffered one.
    /// Two quick swipes may come here in either order: the history sorts by the time of the impression.
    func finished(_ event: FeedbackEvent, now: Int64) {
        _ = session?.feedback(event)
        reached = max(reached, now)
        fill()
    }

    private func fill() {
        guard let session else { return }
        while session.position <= reached + Self.ahead {
            let position = session.position
            guard let item = session.next() else { break }
            let place = Place(itemId: item, pageId: session.pageId, position: position)
            DispatchQueue.main.async { [append] in append(place) } // keeps the order, which tasks do not promise
        }
        ask()
    }

    private func ask() {
        guard let session, !asking else { return }
        let decision = session.wantsPage()
        guard decision.request else { return }
        asking = true
        let request = session.request(size: decision.size, eventsMax: suspects.isEmpty ? eventsMax : 0)
        Task { await answered(request, try? post("v1/page", request.bytes)) }
    }

    private func answered(_ request: PageRequest, _ answer: Answer?) async {
        let page = answer?.body.flatMap { try? Page(decoding: $0) }.flatMap { $0.requestId == request.id ? $0 : nil }
        if let page {
            succeeded(request, kept: page.feedbackKept)
        } else {
            failed(request, refused: answer.map { Self.refusals.contains($0.status) } ?? false)
        }
        if let page, session?.take(page) == true {
            asking = false
            retry = Self.retryNanoseconds
            fill()
            return
        }
        // Swipes do not ask again during a delay that doubles with each failure, and with each page that brings nothing new.
        try? await Task.sleep(nanoseconds: retry)
        retry = min(retry * 2, Self.retryMaxNanoseconds)
        asking = false
        ask()
    }

    /// No page may depend on its feedback, which still waits in the outbox: where that may be the cause, the next request has none.
    private func failed(_ request: PageRequest, refused: Bool) {
        if !request.eventIds.isEmpty { failures += 1 }
        self.refused = refused
        suspects = refused || failures >= Self.doubt ? request.eventIds : []
    }

    private func succeeded(_ request: PageRequest, kept: Bool) {
        if request.eventIds.isEmpty { // it was the feedback: fewer events go along, and one that was refused alone is dropped
            if !suspects.isEmpty { eventsMax = max(1, suspects.count / 2) }
            if suspects.count == 1 && refused { outbox.acknowledged(suspects) }
        } else if kept {
            outbox.acknowledged(request.eventIds)
            failures = 0
            eventsMax = min(2 * eventsMax, Outbox.eventsMax)
        }
        suspects = []
    }

    /// The app goes to the background, maybe for ever: call it within `beginBackgroundTask`. What cannot be sent now is sent at
    /// the next start.
    func stop() async {
        let waiting = outbox.waitingEvents(eventsMax)
        guard !waiting.isEmpty, let body = try? await post("v1/feedback", outbox.batch(waiting)).body,
              let receipt = try? Receipt(decoding: body), receipt.settles(waiting.count) else { return }
        outbox.acknowledged(waiting.map(\.id))
    }

    /// An answer of the cloud; `body` is nil for another status than 200.
    private struct Answer {
        let status: Int
        let body: Data?
    }

    private func post(_ path: String, _ body: Data) async throws -> Answer {
        var request = URLRequest(url: cloud.appending(path: path), timeoutInterval: Self.timeoutSeconds)
        request.httpMethod = "POST"
        request.httpBody = body
        request.setValue("application/msgpack", forHTTPHeaderField: "Content-Type")
        request.setValue("application/msgpack", forHTTPHeaderField: "Accept")
        let (data, response) = try await URLSession.shared.data(for: request)
        guard let status = (response as? HTTPURLResponse)?.statusCode, data.count <= Self.answerMax else {
            throw URLError(.badServerResponse)
        }
        return Answer(status: status, body: status == 200 ? data : nil)
    }
}
