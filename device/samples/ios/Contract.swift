// SAMPLE, never compiled and never run: there was no Swift compiler. See README.md.
import Foundation

// The messages between cloud and device, as in docs/contract.md. `init(_ node:)` checks types only, so that a page whose features
// are bad can still be shown in cloud order; the content of a block is checked where it is used.

/// An array: little-endian, row-major, `dtype` one of f2, f4, i4, i8, u1.
struct Block {
    let dtype: String
    let shape: [Int64]
    let data: [UInt8]

    static let elementsMax: Int64 = 1 << 24
    static let sizes: [String: Int64] = ["f2": 2, "f4": 4, "i4": 4, "i8": 8, "u1": 1]

    init(_ node: Node) throws {
        dtype = try node.field("dtype").text()
        guard Self.sizes[dtype] != nil else { throw try node.field("dtype").refusal("one of \(Self.sizes.keys)") }
        shape = try node.field("shape").list().map { try $0.int() }
        data = try node.field("data").bytes()
    }

    /// The block as rows and columns (a vector is one column), once dtype, shape and length agree.
    func table(_ path: String, dtype: String, dims: Int) throws -> Table {
        guard self.dtype == dtype else { throw ContractError(path: "\(path).dtype", expected: "`\(dtype)`", got: "`\(self.dtype)`") }
        guard shape.count == dims else { throw ContractError(path: "\(path).shape", expected: "\(dims) dimensions", got: "\(shape)") }
        // Check the shape before anything is computed from it: a hostile page may claim any.
        guard shape.allSatisfy({ (0...Self.elementsMax).contains($0) }),
              shape.reduce(1.0, { $0 * Double($1) }) <= Double(Self.elementsMax) else {
            throw ContractError(path: "\(path).shape", expected: "at most \(Self.elementsMax) elements", got: "\(shape)")
        }
        let size = shape.reduce(1, *) * Self.sizes[dtype, default: 0]
        guard Int64(data.count) == size else {
            throw ContractError(path: "\(path).data", expected: "\(size) bytes", got: "\(data.count) bytes")
        }
        return Table(rows: Int(shape[0]), columns: dims > 1 ? Int(shape[1]) : 1, data: data)
    }

    struct Table {
        let rows: Int
        let columns: Int
        fileprivate let data: [UInt8]

        func half(_ row: Int, _ column: Int) -> Float { Float(Float16(bitPattern: number(row, column))) }
        func float(_ row: Int, _ column: Int) -> Float { Float(bitPattern: number(row, column)) }
        func int(_ row: Int, _ column: Int) -> Int32 { number(row, column) }
        func long(_ row: Int) -> Int64 { number(row, 0) }

        private func number<T: FixedWidthInteger>(_ row: Int, _ column: Int) -> T {
            let size = T.bitWidth / 8
            let offset = (row * columns + column) * size
            return data[offset..<offset + size].reversed().reduce(0) { $0 << 8 | T(truncatingIfNeeded: $1) }
        }
    }
}

/// A named group of columns, `values` [rows, names.count].
struct Columns {
    let names: [String]
    let values: Block

    init(_ node: Node) throws {
        names = try node.field("names").list().map { try $0.text() }
        values = try Block(node.field("values"))
    }
}

struct Page {
    let pageId: String
    let requestId: String
    let feedbackKept: Bool // if not, the feedback of the request has to be sent again
    let ttlMs: Int64
    let computePrice: Double
    let itemId: Block
    let floats: Columns
    let categories: Columns
    let numbering: String?
    let vector: Block?
    let userVector: Block?
    let splitVersion: String?

    /// The page in an answer of `POST /v1/page`. When it throws, the request counts as failed.
    init(decoding data: Data) throws {
        let page = try MessagePack.decode(data)
        try page.checkVersion()
        _ = try page.field("created_ms").int() // not used: by the cloud's clock, which may differ from the device's
        let candidates = try page.field("candidates")
        pageId = try page.field("page_id").text()
        requestId = try page.field("request_id").text()
        feedbackKept = try page.field("degraded").optional { try $0.list().allSatisfy { try $0.text() != "no_feedback" } } ?? true
        ttlMs = try page.field("ttl_ms").int()
        computePrice = try page.field("compute_price").optional { try $0.double() } ?? 1
        itemId = try Block(candidates.field("item_id"))
        floats = try Columns(candidates.field("floats"))
        categories = try Columns(candidates.field("categories"))
        numbering = try candidates.field("numbering").optional { try $0.text() }
        vector = try candidates.field("vector").optional(Block.init)
        userVector = try page.field("user_vector").optional(Block.init)
        splitVersion = try page.field("split_version").optional { try $0.text() }
    }
}

enum Ended: Int64 { case swipe, complete, exit, background }

enum Orientation: Int64 { case portrait, landscape }

enum Network: Int64 { case offline, cellular, wifi }

/// One finished impression. A value that this phone does not report stays nil, because an invented one would mislead the model.
struct FeedbackEvent {
    let id = UUID()
    let userId: Int64
    let sessionId: String
    let itemId: Int64
    let position: Int64 // index in the session, from 0
    let impressionMs: Int64
    let watchMs: Int64
    var pageId: String?
    var experiment: String?
    var ended = Ended.swipe
    var click = false
    var like = false
    var follow = false
    var comment = false
    var share = false
    var profileEnter = false
    var dislike = false
    var volume: Double?
    var volumeChange: Double?
    var muted: Bool?
    var orientation: Orientation?
    var playbackRate: Double?
    var pauses: Int64?
    var seeks: Int64?
    var scrollSpeed: Double? // screens per second
    var network: Network?
    var bufferingMs: Int64?
    var batterySaver: Bool?
    var backgrounded: Bool?
    var actions: [String] = [] // the app's own, such as "purchase", each once

    /// Globally unique. The cloud applies an id once, so sending twice is harmless.
    var eventId: String { "\(sessionId)/\(id.uuidString)" }

    /// The fields by their names on the wire, which are also the names of the spec's `feedback_floats`.
    var fields: [String: Value] {
        [
            "version": .int(wireVersion), "event_id": .text(eventId), "user_id": .int(userId), "session_id": .text(sessionId),
            "item_id": .int(itemId), "position": .int(position), "impression_ms": .int(impressionMs), "watch_ms": .int(watchMs),
            "page_id": text(pageId), "experiment": text(experiment), "ended": .int(ended.rawValue), "click": .bool(click),
            "like": .bool(like), "follow": .bool(follow), "comment": .bool(comment), "share": .bool(share),
            "profile_enter": .bool(profileEnter), "dislike": .bool(dislike), "volume": double(volume),
            "volume_change": double(volumeChange), "muted": bool(muted), "orientation": int(orientation?.rawValue),
            "playback_rate": double(playbackRate), "pauses": int(pauses), "seeks": int(seeks), "scroll_speed": double(scrollSpeed),
            "network": int(network?.rawValue), "buffering_ms": int(bufferingMs), "battery_saver": bool(batterySaver),
            "backgrounded": bool(backgrounded),
        ]
    }

    func encode() -> Data {
        let own: [String: Value] = actions.isEmpty ? [:] : ["actions": .list(actions.map(Value.text))]
        return MessagePack.encode(.map(fields.merging(own) { field, _ in field }))
    }

    private func text(_ value: String?) -> Value { value.map(Value.text) ?? .null }
    private func int(_ value: Int64?) -> Value { value.map(Value.int) ?? .null }
    private func double(_ value: Double?) -> Value { value.map(Value.double) ?? .null }
    private func bool(_ value: Bool?) -> Value { value.map(Value.bool) ?? .null }
}

/// The body of `POST /v1/page`: `bytes`, which hold the events of `eventIds`.
struct PageRequest {
    let id: String
    let bytes: Data
    let eventIds: [String]
}

/// The answer of `POST /v1/feedback`.
struct Receipt {
    private let taken: [Int64]
    private let refused: [Int64]

    init(decoding data: Data) throws {
        let receipt = try MessagePack.decode(data)
        try receipt.checkVersion()
        taken = [try receipt.field("accepted").int(), try receipt.field("duplicates").int()]
        refused = try receipt.field("refused").optional { try $0.list().map { try $0.field("index").int() } } ?? []
    }

    /// Whether it speaks of each of a batch's `count` events once, so that the device may forget them.
    func settles(_ count: Int) -> Bool {
        let places = Set(refused.filter { (0..<Int64(count)).contains($0) })
        return taken.allSatisfy { (0...Int64(count)).contains($0) } && places.count == refused.count
            && taken.reduce(Int64(refused.count), +) == Int64(count)
    }
}
